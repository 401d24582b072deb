"""Audit `unread-groups`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import f as f_distribution

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import percent
from ftengine_builtins.audits.column_values import (
    FEWEST_IDS,
    are_ids,
    are_kinds,
    first_values,
    look_like_ids,
    read_values,
    unread_columns,
)
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.word_scores import DrawnRows, draw_rows, one_hot, out_of_sample

LOOKED_AT = 10_000
"""Training rows, the first, by which columns are chosen."""
MOST_GROUPED, MOST_ROWS = 10, 100_000
"""Columns that are compared over the split, and rows of all splits, of each the first."""
SEVERAL = 1.5
"""Rows that a value has on average, at least."""
OF_ONE_LABEL = 0.8
"""How much more often two rows of a value have one label than any two rows, as a share of what is possible (Cohen's
kappa), at least."""
FEWEST_OF_LABEL = 5
"""Values with several rows and this label, at least, of two labels."""
BETWEEN = 0.5
"""Share of the variance of numbers that lies between values (intraclass correlation), lower end of a 95 % interval."""
ORDERED = 0.5
"""The same kappa, or the correlation of means, between a number and the next larger one, from which numbers are
quantities and no ids."""
SHARED = 0.1
"""Share of the held-out rows whose value training has, at the interval's near end, for an alarm."""
SAMPLE = 800
"""Rows whose numbers are compared, and of which is looked how well words predict the value: those of values with
several rows."""
MANY, TOPIC = 10, 0.5
"""Rows that a value has on average, and how much more of the values words predict than the most frequent value of each
label is, at the interval's near end and as a share of what is possible: from both, texts are about the value, which is
a finer label and no group."""
EXPLAINS = (
    "quality",
    "learning",
    "rows",
    "labels",
    "classes",
    "over-fitting",
    "calibration",
    "worse",
    "slices",
    "data",
)


class UnreadGroups(Audit):
    """Finds unread columns of ids that have several rows with one label or near numbers, on both sides of the split.

    A patient's training rows then reveal the label of that patient's held-out rows, whatever their texts say.
    """

    name = "unread-groups"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        settings, split = data.settings, list(data.splits)[-1]
        if split == "train" or settings["split"]["by"] in ("group", "time") or settings.get("group"):
            return
        columns = _candidates(data)
        if not columns or not any(targets.any() for targets in data.targets.values()):
            return
        numbers = _numbered(data, columns)
        for i, name in enumerate(columns):
            groups = {split: of[:, i] for split, of in numbers.of.items()}
            rows = sum(int((of >= 0).sum()) for of in groups.values())
            if not are_ids(name, numbers.names[i], rows):
                continue
            alike = _of_label(numbers.names[i], groups, data) or _of_number(numbers.names[i], groups, data)
            found = None if alike is None else _shared(data, name, groups, split, alike)
            # Of a number, words that name the patient are what is learnt by heart.
            of_ids = "of_variance" in (alike.figures if alike else {}) and look_like_ids(name, numbers.names[i])
            if found is not None and (of_ids or not _is_topic(data, groups)):
                yield found


@dataclass(frozen=True)
class _Values:
    """For each split (rows, columns) numbers of the first rows' values, -1 for none; and each column's values."""

    of: dict[str, np.ndarray]
    names: list[list[Any]]


def _candidates(data: AuditedData) -> list[str]:
    """Return the columns with many values, only texts or whole numbers, in the first training rows."""
    values = first_values(data, unread_columns(data), LOOKED_AT)
    return [name for name, of in values if are_kinds(of) and len(set(of)) >= FEWEST_IDS][:MOST_GROUPED]


def _numbered(data: AuditedData, columns: Sequence[str]) -> _Values:
    places: list[dict[str, int]] = [{} for _ in columns]
    names: list[list[Any]] = [[] for _ in columns]
    of, total = {}, sum(map(len, data.splits.values()))
    for split, rows in data.splits.items():
        looked_at = -(-len(rows) * min(total, MOST_ROWS) // total)
        numbers = np.full((looked_at, len(columns)), -1)
        for i, row in enumerate(read_values(data, split, columns, looked_at)):
            for j, value in enumerate(row):
                if value is not None:
                    numbers[i, j] = place = places[j].setdefault(str(value), len(places[j]))
                    if place == len(names[j]):
                        names[j].append(value)
        of[split] = numbers
    return _Values(of, names)


@dataclass(frozen=True)
class _Alike:
    """How alike the targets of rows with one value are: a sentence about `column`, and its figures."""

    figures: dict[str, float]
    fact: str
    more: str = ""


def _of_label(names: Sequence[Any], groups: dict[str, np.ndarray], data: AuditedData) -> _Alike | None:
    """Return the share of rows whose label is the most frequent one of their value; None if values are no groups.

    Rows without a label or a value are left out.
    """
    of = np.concatenate([*groups.values()])
    targets = np.concatenate([data.targets[split][: len(numbers)] for split, numbers in groups.items()])
    known = (of >= 0) & (targets != 0)
    of, labels = of[known], np.unique(targets[known], return_inverse=True)[1]
    if len(of) < SEVERAL * max(1, len(np.unique(of))):
        return None
    pairs, of_pair = np.unique(np.stack([of, labels]), axis=1, return_counts=True)
    rows = np.bincount(of)
    within, possible = float((of_pair * (of_pair - 1.0)).sum()), float((rows * (rows - 1.0)).sum())
    chance = float(((np.bincount(labels) / len(labels)) ** 2).sum())
    if chance == 1 or (within / possible - chance) / (1 - chance) < OF_ONE_LABEL:
        return None
    most = np.zeros(len(rows), dtype=np.int64)
    most[pairs[0][np.argsort(of_pair, kind="stable")]] = pairs[1][np.argsort(of_pair, kind="stable")]
    repeated = np.flatnonzero(rows > 1)
    if len(repeated) < FEWEST_IDS or (np.bincount(most[repeated]) >= FEWEST_OF_LABEL).sum() < 2:
        return None
    if all(isinstance(names[i], int) for i in repeated):
        in_order = most[sorted(repeated.tolist(), key=lambda i: names[i])]
        if ((in_order[1:] == in_order[:-1]).mean() - chance) / (1 - chance) >= ORDERED:
            return None
    share = float((most[of] == labels).mean())
    fact = f"rows with one `{{column}}` {'always' if share == 1 else 'nearly always'} have one label"
    more = f"{percent(share)} of all rows have the most frequent label of their `{{column}}`; "
    return _Alike({"of_label": share}, fact, more)


def _of_number(names: Sequence[Any], groups: dict[str, np.ndarray], data: AuditedData) -> _Alike | None:
    """Return the share of the numbers' variance that lies between values; None if it is small or targets are classes.

    One-way analysis of variance on a sample of values; the interval is that of F (Shrout and Fleiss 1979, ICC(1)).
    """
    drawn = _rows_of_values(data, groups)
    if drawn is None or (numbers := drawn[0].numbers) is None:
        return None
    rows, of = drawn
    values, group, counts = np.unique(of[rows.rows], return_inverse=True, return_counts=True)
    if len(values) < FEWEST_IDS or len(group) < SEVERAL * len(values):
        return None
    means = np.bincount(group, numbers) / counts
    between = float((counts * (means - numbers.mean()) ** 2).sum()) / (len(values) - 1)
    within = float(((numbers - means[group]) ** 2).sum()) / (len(group) - len(values))
    size = (len(group) - float((counts**2).sum()) / len(group)) / (len(values) - 1)  # rows of a value, about the mean
    if _is_ordered(names, means, values):
        return None
    least = between / float(f_distribution.ppf(0.975, len(values) - 1, len(group) - len(values)))
    if least - within < BETWEEN * (least + (size - 1) * within):
        return None
    share = (between - within) / (between + (size - 1) * within)
    fact = f"{percent(share)} of the numbers' variance lies between values of `{{column}}`"
    return _Alike({"of_variance": share}, fact)


def _is_ordered(names: Sequence[Any], means: np.ndarray, values: np.ndarray) -> bool:
    """Return whether values are numbers whose neighbours have near means, such as an age."""
    if not all(isinstance(names[i], int) for i in values):
        return False
    in_order = means[np.argsort([names[i] for i in values])]
    return np.ptp(means) > 0 and bool(np.corrcoef(in_order[1:], in_order[:-1])[0, 1] >= ORDERED)


def _rows_of_values(data: AuditedData, groups: dict[str, np.ndarray]) -> tuple[DrawnRows, np.ndarray] | None:
    """Return rows of some values that have several, and (rows of all splits,) each row's value, -1 for none."""
    padded = [np.pad(of, (0, len(data.splits[split]) - len(of)), constant_values=-1) for split, of in groups.items()]
    of = np.concatenate(padded)
    counts = np.bincount(of[of >= 0])
    values = np.random.default_rng(0).permutation(np.flatnonzero(counts > 1))
    enough = max(FEWEST_IDS, int(np.searchsorted(np.cumsum(counts[values]), SAMPLE)) + 1)
    rows = draw_rows(data, SAMPLE, numbers=True, among=np.isin(of, values[:enough]))
    return None if rows is None else (rows, of)


def _is_topic(data: AuditedData, groups: dict[str, np.ndarray]) -> bool:
    """Return whether words predict the value far better than the label does, as for a finer label."""
    drawn_rows = _rows_of_values(data, groups)
    if drawn_rows is None:
        return False
    rows, of = drawn_rows
    counts = np.bincount(of[of >= 0])
    if counts[counts > 1].mean() < MANY:
        return False  # the few rows of one patient or dialogue have words of their own as well
    drawn = np.unique(of[rows.rows], return_inverse=True)[1]
    # Of numbers, `labels` are all 0: guessing the most frequent value is what words have to be better than.
    of_label = sum(int(np.bincount(drawn[rows.labels == label]).max()) for label in np.unique(rows.labels)) / len(drawn)
    right = int((out_of_sample(rows.texts, one_hot(drawn)).argmax(1) == drawn).sum())
    return share_within(right, len(drawn))[0] >= of_label + TOPIC * (1 - of_label)


def _shared(data: AuditedData, name: str, groups: dict[str, np.ndarray], split: str, alike: _Alike) -> Finding | None:
    held, train = groups[split], groups["train"]
    also = np.isin(held, train[train >= 0])
    if not len(held) or share_within(int(also.sum()), len(held))[0] < SHARED:
        return None
    row = int(np.flatnonzero(also)[0])
    other = int(np.flatnonzero(train == held[row])[0])
    shared = f"{also.sum():,} of {len(held):,} {split_name(split)} rows share their `{name}` with training rows, and "
    shared += alike.fact.format(column=name)
    text = f"{shared}: the figures do not hold for new ones; set data.group: {name} ({alike.more.format(column=name)}"
    text += f"e.g. {data.splits['train'].where(other)} & {data.splits[split].where(row)})."
    if data.splits[split].source != data.splits["train"].source:
        text += " With data.leaks: drop, training then loses these rows."
    figures = {"column": name, "split": split, "shared": int(also.sum()), "rows": len(held), **alike.figures}
    brief = f"set data.group: {name}: {shared}, so the figures do not hold for new ones"
    return Finding(kind="data", level="alarm", text=text, brief=brief, explains=EXPLAINS, figures=figures)
