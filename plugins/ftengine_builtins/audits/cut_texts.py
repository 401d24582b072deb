"""Audit `cut-texts`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from statistics import NormalDist, median
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import percent
from ftengine_builtins.audits.word_scores import DrawnRows, draw_rows, one_hot, out_of_sample
from ftengine_builtins.tasks.text_classification import CUT_IN_FRONT

CUT = 0.2
"""Share of the training examples that are cut, from which it is looked at what that costs."""
SAMPLE, FEWEST = 400, 60
"""Rows that are looked at, drawn from all, a tenth of a second of them; with fewer nothing is said."""
CHARACTERS = 20_000
"""Characters of a text that are read."""
NOTE, ALARM = 0.02, 0.1
"""How much more of the labels the words of whole texts tell than those of the parts that are kept, at the interval's
near end, from which it is a note, and an alarm: in points of accuracy, or of the variance of numbers."""


class CutTexts(Audit):
    """Finds texts whose words predict the label as a whole, but not in the part that the length limit leaves.

    A ridge classifier on TF-IDF of words scores each row out of sample, once by the whole text and once by about as
    much of it as the model reads: its limit in tokens times the mean characters of a token.
    """

    name = "cut-texts"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        encoded = data.encoded.get("train", {})
        share = encoded.get("truncated", 0) / max(1, encoded.get("examples", 0))
        if share < CUT or not encoded.get("untruncated") or not _one_text(data):
            return
        rows = draw_rows(data, SAMPLE, CHARACTERS, numbers=True)
        if rows is None or len(rows.texts) < FEWEST:
            return
        size = round(encoded["longest"] * median(map(len, rows.texts)) / max(1, encoded["untruncated"]["50"]))
        in_front = encoded.get("counts", {}).get(CUT_IN_FRONT, 0) > encoded["truncated"] / 2
        beginnings, ends = [text[:size] for text in rows.texts], [text[-size:] for text in rows.texts]
        whole, first, last = (_scores_of_words(rows, texts) for texts in (rows.texts, beginnings, ends))
        kept, other = (last, first) if in_front else (first, last)
        gain, low = _gain(whole, kept)
        if low < NOTE:
            return
        other_way = _gain(other, kept)[1] >= NOTE
        figures = {"whole": float(whole.mean()), "kept": float(kept.mean()), "gain": gain, "low": low, "cut": share}
        figures |= {"other_end": float(other.mean()), "rows": len(rows.texts), "limit": encoded["longest"]}
        yield _finding(figures, encoded, rows, in_front=in_front, other_way=other_way)


def _one_text(data: AuditedData) -> bool:
    """Return whether rows have one text each; in pairs, a different part would be cut."""
    return all(len(view.inputs) == 1 for view in islice(data.splits["train"], 20))


def _scores_of_words(rows: DrawnRows, texts: list[str]) -> np.ndarray:
    """Return (n,) scores of words' predictions, whose mean is accuracy, or R² for numbers."""
    if rows.numbers is None:
        return (out_of_sample(texts, one_hot(rows.labels)).argmax(1) == rows.labels).astype(float)
    given = (rows.numbers - rows.numbers.mean()) / rows.numbers.std()
    return 1 - (out_of_sample(texts, given[:, None])[:, 0] - given) ** 2


def _gain(whole: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return how much better the first predictions are, and the near end of the paired 95 % interval."""
    differences = whole - other
    half = NormalDist().inv_cdf(0.975) * differences.std() / np.sqrt(len(differences))
    return float(differences.mean()), float(differences.mean() - half)


def _finding(
    figures: Mapping[str, Any], encoded: Mapping[str, Any], rows: DrawnRows, *, in_front: bool, other_way: bool
) -> Finding:
    limit, side = encoded["longest"], "right" if in_front else "left"
    end = "beginnings" if in_front else "ends"
    lead = f"raise task.max_length ({limit:,}; the longest example has {encoded['untruncated']['100']:,} tokens)"
    if other_way:
        lead += f" or keep the {end} of texts (task.truncate: {side})"
    does = f"predict the label of {percent(figures['whole'])} of the rows"
    left = f"those of the kept parts {percent(figures['kept'])}"
    if rows.numbers is not None:
        does = f"explain {percent(figures['whole'])} of the variance of the numbers"
        left = f"those of the kept parts {percent(max(0.0, figures['kept']))}"
    cut = f"{percent(figures['cut'])} of the training examples are cut"
    text = (
        f"{lead[:1].upper()}{lead[1:]}: {cut}, and the decisive part is lost. The words of whole texts {does}, {left}."
    )
    return Finding(
        kind="data",
        level="alarm" if figures["low"] >= ALARM else "note",
        text=text,
        brief=f"{lead}: {cut}, and the decisive part is lost",
        explains=("quality", "learning", "rows", "classes", "labels", "over-fitting", "calibration", "worse", "slices"),
        figures=dict(figures),
    )
