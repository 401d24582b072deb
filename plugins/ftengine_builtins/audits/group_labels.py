"""Audit `group-labels`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import percent
from ftengine_builtins.audits.column_values import first_values, read_values, unread_columns
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED

MOST_ROWS = 10_000
"""Rows of a split that are looked at, the first."""
FEWEST_GROUPS, FEWEST_ROWS = 5, 20
"""Values, and rows beyond the first of each, at least, in both splits."""
ONE_LABEL, USUAL = 0.9, 0.8
"""Share of these rows with the label of the first of their value, near end of an interval, from which a value has one
label, and share that rows of different values may have by chance at most. A value has several labels where its share is
less than half-way from chance to 1."""


class GroupLabels(Audit):
    """Finds labels that all rows of one value of an unread column share in one split and not in the other.

    Such labels are a group's average that was copied to each of its rows, or the label of its majority, and say nothing
    about single rows. The audit looks at numbers and classes.
    """

    name = "group-labels"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        names = unread_columns(data) if len(data.splits) > 1 else []
        names = [name for name, of in first_values(data, names, MOST_ROWS) if FEWEST_GROUPS <= _number(of) < len(of)]
        split = list(data.splits)[-1]  # figures are made on the last
        if not names or not all(data.targets[part].any() for part in ("train", split)):
            return
        for i, name in enumerate(names):
            trained, held = (_shared(data, part, names, i) for part in ("train", split))
            if trained is None or held is None:
                continue
            for side, other in ((trained, held), (held, trained)):
                if side.has_one_label and other.has_several:
                    yield _finding(name, split, side, other)


def _number(values: list[object]) -> int:
    return len({str(value) for value in values})


@dataclass(frozen=True)
class _Shared:
    """How many rows of a split have the label of the first row of their value, of all but these, and by chance."""

    split: str
    same: int
    rows: int
    chance: float

    @property
    def share(self) -> float:
        return self.same / self.rows

    @property
    def has_one_label(self) -> bool:
        return share_within(self.same, self.rows)[0] >= ONE_LABEL

    @property
    def has_several(self) -> bool:
        return share_within(self.same, self.rows)[1] <= (1 + self.chance) / 2


def _shared(data: AuditedData, split: str, names: list[str], column: int) -> _Shared | None:
    """Return how often rows of one value of a column share a label; None where there are few, or most rows do."""
    first: dict[str, int] = {}
    targets, same, after = data.targets[split], 0, 0
    for row, values in enumerate(read_values(data, split, names, MOST_ROWS)):
        if values[column] is None or not targets[row]:
            continue
        value, target = str(values[column]), int(targets[row])
        if value in first:
            after, same = after + 1, same + (first[value] == target)
        else:
            first[value] = target
    kinds = np.unique([*first.values()], return_counts=True)[1] if first else np.ones(1)
    usual = float(((kinds / kinds.sum()) ** 2).sum())
    several = after >= FEWEST_ROWS and len(first) >= FEWEST_GROUPS
    return _Shared(split, same, after, usual) if several and usual < USUAL else None


def _finding(name: str, split: str, side: _Shared, other: _Shared) -> Finding:
    brief = f"check how {split_name(side.split)} labels were made: all rows of one `{name}` have one label there "
    brief += (
        f"({percent(side.share)}), in {split_name(other.split)} rows {percent(other.share)}, as if a figure of the "
    )
    brief += f"whole `{name}` stood beside each of its rows"
    figures = {"column": name, "split": split, "of_groups": side.split, "one": side.share, "several": other.share}
    text = f"{brief[:1].upper()}{brief[1:]}. Give each row its own label."
    return Finding(kind="labels", level="alarm", text=text, brief=brief, explains=(*EXPLAINED, "data"), figures=figures)
