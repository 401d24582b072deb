"""Audit `number-targets`."""

from collections.abc import Iterator

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import counted, number, percent
from ftengine_builtins.audits.contradictions import are_numbers
from ftengine_builtins.audits.counting import SHOWN_PLACES

MOST = 0.5
"""Share of all squared distances to the median that FEW of the rows have where they outweigh the others."""

FEW = 0.01


class NumberTargets(Audit):
    """Numbers to be learnt of which a few outweigh all others."""

    name = "number-targets"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if not are_numbers(data):
            return
        rows = data.splits["train"]
        numbered = [(view.label, i) for i, view in enumerate(rows) if isinstance(view.label, float)]
        if not numbered:
            return
        values = np.array([value for value, _ in numbered])
        median = float(np.median(values))
        figures = {"median": median, "least": float(values.min()), "most": float(values.max())}
        squared = (values - median) ** 2
        order = np.argsort(-squared, kind="stable")[: max(1, int(FEW * len(values)))]
        share = float(squared[order].sum() / squared.sum()) if squared.any() else 0.0
        if share >= MOST and len(values) >= 1 / FEW:
            places = tuple(rows.where(numbered[i][1]) for i in order[:SHOWN_PLACES])
            outliers, first = counted(len(order), "outlier"), number(float(values[order[0]]))
            text = f"Look at {outliers} among the numbers to be learnt, such as {first} at {places[0]}: of all squared "
            text += f"distances to the median, {percent(share)} are in {counted(len(order), 'row')} of {len(values):,}."
            yield Finding(kind="labels", level="note", text=text, figures={**figures, "share": share}, places=places)
