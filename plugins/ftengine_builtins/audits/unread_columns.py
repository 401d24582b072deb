"""Audit `unread-columns`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import percent
from ftengine_builtins.audits.column_values import are_ids, is_named_as_id, unread_columns
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.unread_texts import find_unread_texts
from ftengine_builtins.audits.word_scores import draw_rows, one_hot, out_of_sample

MOST_ROWS = 10_000
"""Rows of a split that are looked at, the first."""
SAMPLE = 400
"""Rows of which is looked how well the words of texts tell the label."""
FEWEST = 40
"""Rows on which a column is tried, below which nothing is said."""
REPEATED = 4
"""Rows that a value of a column has on average, at least: ids and free texts have fewer."""
RANGES = 10
"""Numbers of more than twice as many values are taken in so many ranges of equally many rows."""
GAIN = 0.2
"""How much more of the labels a column tells, at the interval's near end, than always answering the most frequent one,
and than half of that the words of texts, for it to be said."""


class UnreadColumns(Audit):
    """Finds unread columns that predict the label, by the most frequent label of each value in training.

    A column with one value for each label is the label in another form, and rightly not read. For unread texts, the
    words are tried instead (`unread_texts`).
    """

    name = "unread-columns"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        names = unread_columns(data)
        if names and any(targets.any() for targets in data.targets.values()):
            if not any(isinstance(view.label, float) for view in islice(data.splits["train"], 100)):
                yield from _by_values(data, names)
            yield from find_unread_texts(data, names)


def _by_values(data: AuditedData, names: Sequence[str]) -> Iterator[Finding]:
    """Name the columns whose values tell the label."""
    learnt, tried, split = _parts(data, names)
    kinds, counts = np.unique(learnt.targets, return_counts=True)
    if len(tried.targets) < FEWEST or len(kinds) < 2:
        return
    constant = float((tried.targets == kinds[counts.argmax()]).mean())
    columns = [(name, _tell(name, learnt, tried, i)) for i, name in enumerate(names)]
    telling = [(name, right) for name, right in columns if right is not None and _low(right) >= constant + GAIN]
    words = _word_accuracy(data) if telling else None
    for name, right in sorted(telling, key=lambda column: -column[1].mean()):
        if words is None or _low(right) >= words + GAIN / 2:
            figures = {"column": name, "told": float(right.mean()), "low": _low(right), "constant": constant}
            yield _finding({**figures, "words": words, "rows": len(right), "split": split})


@dataclass(frozen=True)
class _Rows:
    """(rows,) targets, none of them 0, and for each row its values in some columns."""

    targets: np.ndarray
    values: list[tuple[Any, ...]]


def _parts(data: AuditedData, names: Sequence[str]) -> tuple[_Rows, _Rows, str]:
    """Return the rows to learn columns from, the rows to test them on, and the split of the latter.

    With training alone, every second row is tested.
    """

    def rows(split: str, step: slice = slice(None)) -> _Rows:
        targets = data.targets[split][:MOST_ROWS]
        values = list(islice(data.splits[split].values(names), MOST_ROWS))
        known = np.flatnonzero(targets)[step]
        return _Rows(targets[known], [values[i] for i in known])

    split = list(data.splits)[-1]
    if split == "train":
        return rows(split, slice(0, None, 2)), rows(split, slice(1, None, 2)), split
    return rows("train"), rows(split), split


def _tell(name: str, learnt: _Rows, tried: _Rows, column: int) -> np.ndarray | None:
    """Return (rows,) whether a column predicts the label of each tested row.

    None if its values are no kinds of rows (lists, ids, free texts, nothing), or if it has one value for each label.
    """
    before, values = ([row[column] for row in part.values] for part in (learnt, tried))
    known = [value for value in before if value is not None and value == value]
    if not known or any(isinstance(value, (list, dict)) for value in known):
        return None
    if all(isinstance(value, (int, float)) for value in known) and len(set(known)) > 2 * RANGES:
        numbers = np.array(known, dtype=float)
        edges = np.quantile(numbers[np.isfinite(numbers)], np.linspace(0, 1, RANGES + 1)[1:-1])
        before, values = ([_range(value, edges) for value in part] for part in (before, values))
        if len(set(known)) == len(known) and _is_sorted(known):
            return None  # rows are numbered, and maybe in the order of their labels
        if is_named_as_id(name):
            return None
    labels: dict[str, Counter[int]] = {}
    for value, target in zip(before, learnt.targets.tolist(), strict=True):
        if value is not None:
            labels.setdefault(str(value), Counter())[target] += 1
    if len(labels) < 2 or len(labels) * REPEATED > len(known) or are_ids(name, labels, len(known)):
        return None
    most = Counter(learnt.targets.tolist()).most_common(1)[0][0]
    given = {value: counts.most_common(1)[0][0] for value, counts in labels.items()}
    right = np.array([given.get(str(value), most) for value in values]) == tried.targets
    pure = bool(right.all()) and all(len(counts) == 1 for counts in labels.values())
    return None if pure and len(given) == len(set(given.values())) else right


def _range(value: Any, edges: np.ndarray) -> int | None:
    is_number = isinstance(value, (int, float)) and value == value
    return int(np.searchsorted(edges, value)) if is_number else None


def _is_sorted(values: Sequence[Any]) -> bool:
    return all(value < other for value, other in pairwise(values))


def _low(right: np.ndarray) -> float:
    return share_within(int(right.sum()), len(right))[0]


def _word_accuracy(data: AuditedData) -> float | None:
    """Return the share of labels that the words of texts predict; None with too few rows, or without texts."""
    rows = draw_rows(data, SAMPLE)
    if rows is None or len(rows.texts) < FEWEST:
        return None
    return float((out_of_sample(rows.texts, one_hot(rows.labels)).argmax(1) == rows.labels).mean())


def _finding(figures: dict[str, Any]) -> Finding:
    words = "" if figures["words"] is None else f"the words of texts: {percent(figures['words'])}; "
    text = f"Column `{figures['column']}` is not read, and predicts the label of {percent(figures['told'])} of the "
    text += f"{split_name(figures['split'])} rows ({words}the most frequent label: {percent(figures['constant'])}). "
    text += "If it is known at prediction time, write it into the text."
    return Finding(kind="data", level="note", text=text, figures=figures)
