"""Training, validation and test rows, with equal examples on one side."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftengine.api import Task
from ftengine.data.audit import audit_splits, identities
from ftengine.data.read import Rows, Skipped, read_rows
from ftengine.errors import DataError
from ftengine.recipe import DataSection


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Args:
        train, validation, test: rows, None where the recipe asks for none.
        audit: what `audit_splits` found, as JSON values.
    """

    train: Rows
    validation: Rows | None
    test: Rows | None
    audit: dict[str, Any]

    def mapping(self) -> dict[str, Rows]:
        """Return the splits that there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in splits.items() if rows is not None}

    def items(self) -> ItemsView[str, Rows]:
        return self.mapping().items()


def make_splits(section: DataSection, task: Task, seed: int) -> Splits:
    """Read the recipe's data and hold out what it asks for.

    Validation and test are files of their own, or fractions that are cut from the training file by `cut`.

    Raises:
        DataError: a source cannot be read, its columns do not suit the task, or too few distinct examples
            are left for a fraction.
    """
    train = read_for(section.train, section, task)
    digests = {"train": identities(train, task, seed)}
    fractions: dict[str, float] = {}
    held: dict[str, Rows] = {}
    for name in ("test", "validation"):  # test is cut first
        part = getattr(section, name)
        if isinstance(part, str):
            held[name] = read_for(part, section, task)
            digests[name] = identities(held[name], task, seed)
        elif part is not None:
            fractions[name] = part
    if fractions:
        sides = cut(digests["train"], fractions, train.source)
        # What could not be read is told once, with the training split.
        whole, all_digests = replace(train, skipped=Skipped()), digests["train"]
        train = replace(train.select(sides["train"]), skipped=train.skipped)
        held |= {name: whole.select(sides[name]) for name in fractions}
        digests |= {name: all_digests[rows] for name, rows in sides.items()}
    splits = Splits(train, held.get("validation"), held.get("test"), {})
    return replace(splits, audit=audit_splits(splits.mapping(), digests, fractions))


def cut(digests: np.ndarray, fractions: Mapping[str, float], source: str = "the data") -> dict[str, np.ndarray]:
    """Divide rows so that equal ones share a side.

    Groups of equal rows are taken in the order of their hashes, which is a shuffle by the seed: for the
    first split from the front, for the second from the back, so that the fraction of one does not move
    the other as long as they do not meet. A group is taken if it brings the number of rows closer to the
    fraction; where no group does, because all are large, the smallest is taken. One group at least is left
    for training. The same rows in another order, or among further rows, mostly stay where they were.

    Args:
        digests: (rows,) a hash of each row, as from `identities`.
        fractions: shares of all rows, by split name; at most two.
        source: where the rows are from, for the message.

    Returns:
        "train" and every key of `fractions` with the indices of its rows, ascending; none is empty.

    Raises:
        DataError: there are fewer distinct rows than splits.
    """
    _, group_of, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    if len(sizes) <= len(fractions):
        raise DataError(
            f"{source}: its {len(digests)} rows hold {len(sizes)} distinct; that is too few to hold out "
            f"{' and '.join(fractions)} and keep one for training, as equal examples stay on one side. "
            f"Add examples, or set {' and '.join(f'data.{name}: null' for name in fractions)}."
        )
    owner = np.full(len(sizes), "train", dtype=object)
    waiting = len(fractions)
    for name, fraction in fractions.items():
        free = np.flatnonzero(owner == "train")
        if waiting < len(fractions):
            free = free[::-1]
        # One group is kept for training and one for each split that is still to be cut.
        owner[_take(sizes, free, fraction * len(digests), len(free) - waiting)] = name
        waiting -= 1
    return {name: np.flatnonzero(owner[group_of] == name) for name in ("train", *fractions)}


def _take(sizes: np.ndarray, order: Iterable[int], target: float, most: int) -> list[int]:
    """Return up to `most` groups, at least one, whose sizes come close to `target` in sum."""
    taken: list[int] = []
    count = 0
    for group in order:
        if len(taken) == most or count >= target:
            break
        if sizes[group] < 2 * (target - count):  # it ends closer to the target than it began
            taken.append(group)
            count += sizes[group]
    return taken or [min(order, key=lambda group: sizes[group])]


def read_for(source: str, section: DataSection, task: Task) -> Rows:
    """Read a source as the recipe says and let the task check its columns.

    Raises:
        DataError: it cannot be read, or its columns do not suit the task; the message names it.
    """
    rows = read_rows(source, on_error=section.on_error, columns=section.columns, paths=task.paths)
    try:
        task.check(rows.columns)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return rows
