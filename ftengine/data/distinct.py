"""The distinct rows of several splits, which leak checks compare; each text is read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ftengine.api import Task, View
from ftengine.data.rows import DataRows
from ftengine.model.tokens import LONG_TEXT


def text_of(view: View) -> str:
    """Return the texts of a row, one a line, cut to the first `LONG_TEXT` characters."""
    return "\n".join(view.texts)[:LONG_TEXT]


class Distinct:
    """The distinct rows of some splits, numbered by the order of their hashes (not of the files).

    Args:
        digests: for each split the hash of each row, from `identities` with one seed.
    """

    def __init__(self, splits: Mapping[str, DataRows], digests: Mapping[str, np.ndarray], task: Task) -> None:
        self._splits, self._task = splits, task
        self._starts = np.cumsum([0, *(len(digests[name]) for name in splits)])
        every = np.concatenate([digests[name] for name in splits])
        _, self._first, inverse = np.unique(every, return_index=True, return_inverse=True)
        self.of: dict[str, np.ndarray] = {
            name: inverse[start:stop]
            for name, start, stop in zip(splits, self._starts[:-1], self._starts[1:], strict=True)
        }
        """For each split, (rows,) the number of the distinct row that each row equals."""

    def __len__(self) -> int:
        return len(self._first)

    def members(self, name: str) -> np.ndarray:
        """Return (distinct,) bool, whether each distinct row occurs in a split."""
        mask = np.zeros(len(self), dtype=bool)
        mask[self.of[name]] = True
        return mask

    def sides(self) -> np.ndarray:
        """Return (distinct,) uint8 bit masks of the splits in which each distinct row occurs."""
        bits = np.zeros(len(self), dtype=np.uint8)
        for bit, name in enumerate(self._splits):
            bits |= self.members(name).astype(np.uint8) << bit
        return bits

    def text(self, number: int) -> str:
        """Return the text of a distinct row (`text_of`)."""
        name, row = self._place(number)
        return text_of(self._splits[name].view(row, self._task))

    def label(self, number: int) -> Any:
        """Return the label of the first occurrence of a distinct row (`View.label`)."""
        name, row = self._place(number)
        return self._splits[name].view(row, self._task).label

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of every distinct row, in the order of the files."""
        for start, (name, rows) in zip(self._starts, self._splits.items(), strict=False):
            numbers = self.of[name]
            new = self._first[numbers] == start + np.arange(len(numbers))
            for i, view in enumerate(rows.views(self._task)):
                if new[i]:
                    yield int(numbers[i]), text_of(view)

    def where(self, number: int) -> str:
        """Return the place of the first occurrence of a distinct row."""
        name, row = self._place(number)
        return self._splits[name].where(row)

    def _place(self, number: int) -> tuple[str, int]:
        at = int(self._first[number])
        split = int(np.searchsorted(self._starts, at, side="right")) - 1
        return list(self._splits)[split], at - int(self._starts[split])
