"""Distinct examples of several splits: what the audit compares, each read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ftengine.api import Task
from ftengine.data.read import Rows


class Units:
    """The distinct examples of some splits, ordered by their hashes: an order that does not depend on the files'.

    Args:
        splits: rows by name.
        digests: for each name the hash of each row, from `identities` with one seed.
        task: says what the text of a row is.
    """

    def __init__(self, splits: Mapping[str, Rows], digests: Mapping[str, np.ndarray], task: Task) -> None:
        self._splits, self._task = splits, task
        self._starts = np.cumsum([0, *(len(digests[name]) for name in splits)])
        every = np.concatenate([digests[name] for name in splits])
        _, self._first, inverse = np.unique(every, return_index=True, return_inverse=True)
        self.of: dict[str, np.ndarray] = {
            name: inverse[start:stop]
            for name, start, stop in zip(splits, self._starts[:-1], self._starts[1:], strict=True)
        }
        """For each split, the unit behind each row."""

    def __len__(self) -> int:
        return len(self._first)

    def members(self, name: str) -> np.ndarray:
        """Say for each unit whether it occurs in a split."""
        found = np.zeros(len(self), dtype=bool)
        found[self.of[name]] = True
        return found

    def sides(self) -> np.ndarray:
        """Return a number a unit whose bits are the splits in which it occurs."""
        bits = np.zeros(len(self), dtype=np.uint8)
        for bit, name in enumerate(self._splits):
            bits |= self.members(name).astype(np.uint8) << bit
        return bits

    def text(self, unit: int) -> str:
        """Return all text of a unit, a line for each of the task's texts."""
        name, row = self._place(unit)
        return "\n".join(self._task.view(self._splits[name][row]).texts)

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield every unit with its text, in the order of the files."""
        for start, (name, rows) in zip(self._starts, self._splits.items(), strict=False):
            unit_of = self.of[name]
            new = self._first[unit_of] == start + np.arange(len(unit_of))
            for i, row in enumerate(rows):
                if new[i]:
                    yield int(unit_of[i]), "\n".join(self._task.view(row).texts)

    def where(self, unit: int) -> str:
        """Return the place where a unit occurs first."""
        name, row = self._place(unit)
        return self._splits[name].where(row)

    def _place(self, unit: int) -> tuple[str, int]:
        at = int(self._first[unit])
        number = int(np.searchsorted(self._starts, at, side="right")) - 1
        return list(self._splits)[number], at - int(self._starts[number])
