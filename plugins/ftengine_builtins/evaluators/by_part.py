"""Figures of each part (label, kind of entity, output) with their intervals, as facts and as a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftengine.api import Estimator, Table
from ftengine.text import with_ends
from ftengine_builtins.evaluators.weighted import finite_or_none

F1 = {"precision": "precision", "recall": "recall", "f1": "F1"}


def by_part(
    part: str,
    parts: str,
    names: Sequence[str],
    headings: Mapping[str, str],
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    estimate: Estimator,
    trials: Mapping[str, np.ndarray] | None = None,
    **counted: Sequence[int],
) -> Iterator[Table | tuple[str, Any]]:
    """Yield a fact with each part's FIGURE and FIGURE_interval ([low, high] or None), and the same as a table.

    Args:
        part, parts: name of the parts, singular and plural: "label", "labels"; the plural is the fact's name.
        names: names of the k parts.
        headings: headings of the figures in the table, by name.
        figures: function of weights (B, n) that returns (B, k) figures by name.
        estimate: the argument `estimate` of `Evaluator.details`.
        trials: (k,) by name, for figures that are proportions.
        counted: further counts of each part, k integers by name.
    """

    def values(weights: np.ndarray) -> np.ndarray:
        by_name = figures(weights)
        return np.concatenate([by_name[name] for name in headings], axis=1)

    flat = iter(estimate(values, None if trials is None else np.concatenate([trials[n] for n in headings]).tolist()))
    by_figure = {name: [next(flat) for _ in names] for name in headings}
    rows, cells = [], []
    for i, name in enumerate(names):
        row: dict[str, Any] = {part: name, **{key: values[i] for key, values in counted.items()}}
        for figure, estimates in by_figure.items():
            row[figure] = finite_or_none(estimates[i].value)
            row[f"{figure}_interval"] = None if estimates[i].low is None else [estimates[i].low, estimates[i].high]
        rows.append(row)
        of = [estimates[i] for estimates in by_figure.values()]
        shown = (with_ends(estimated) if np.isfinite(estimated.value) else None for estimated in of)
        cells.append((name, *shown, *(values[i] for values in counted.values())))
    yield parts, rows
    columns = (part, *headings.values(), *counted)
    yield Table(title=parts.capitalize(), columns=columns, rows=tuple(cells), caption="In brackets: 95 % intervals.")
