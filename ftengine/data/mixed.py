"""Rows of several sources as one, and the order in which an epoch takes them by their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ftengine.data.cache import BATCH_ROWS, SHOWN_SKIPS
from ftengine.data.rows import DataRows, DecodedRows
from ftengine.errors import DataError
from ftengine.run.records import Skipped

SOURCE = "data_source"
"""The column that says which of several sources a row is of."""
_OF, _ROW = "source", "row"
_ROUND = 1
"""Tells the random numbers of a source's round from those of an epoch: zeros behind a seed make no other."""


@dataclass(frozen=True)
class MixedRows(DataRows):
    """Rows of several sources, one source after another; `dataset` has for each its source's number and its row's.

    Args:
        sources: what was read of each.
        weights: each source's share of an epoch, relative to the others'; () where an epoch has each row once.
    """

    sources: tuple[DataRows, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def of(self) -> np.ndarray:
        """(rows,) the number of each row's source."""
        return self._places[_OF]

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        return self.dataset.with_format("numpy")[:]

    def _decode(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), BATCH_ROWS):
            of, rows = (self._places[name][start : start + BATCH_ROWS] for name in (_OF, _ROW))
            streams = {int(n): iter(self.sources[n].select(rows[of == n])) for n in np.unique(of)}
            for n in of.tolist():
                yield self._named(n, next(streams[n]))

    def _row(self, stored: dict[str, Any]) -> dict[str, Any]:
        return self._named(stored[_OF], self.sources[stored[_OF]][stored[_ROW]])

    def _named(self, n: int, row: dict[str, Any]) -> dict[str, Any]:
        return {**self._blank, **row, SOURCE: self.sources[n].source}

    def where(self, index: int) -> str:
        """Return the place of a row, in its own source."""
        return self.sources[self.of[int(index)]].where(int(self._places[_ROW][int(index)]))

    def counted(self, index: np.ndarray, **values: np.ndarray) -> list[dict[str, Any]]:
        """Return of each source how many rows and examples it has among some, and what these come to in sum."""
        of = self.of[index]
        return [
            {
                "source": source.source,
                "rows": len(np.unique(self.before(index[of == n]))),
                "examples": int((of == n).sum()),
                **{name: int(numbers[of == n].sum()) for name, numbers in values.items()},
            }
            for n, source in enumerate(self.sources)
        ]


def mixed(sources: Sequence[DataRows], weights: Sequence[float]) -> MixedRows:
    """Return rows of several sources as one (DataError: one has a column of the name that tells sources apart)."""
    from datasets import Dataset

    for rows in sources:
        if SOURCE in rows.columns:
            told = f"{rows.source} has a column {SOURCE!r}, by which rows of several sources are told apart"
            raise DataError(f"{told}. Rename the column.")
    sizes = [len(rows) for rows in sources]
    dataset = Dataset.from_dict(
        {_OF: np.repeat(np.arange(len(sizes)), sizes), _ROW: np.concatenate([np.arange(size) for size in sizes])}
    )
    first = tuple(one for rows in sources for one in rows.skipped.first)[:SHOWN_SKIPS]
    return MixedRows(
        dataset,
        " + ".join(rows.source for rows in sources),
        {column: column for column in (*(column for rows in sources for column in rows.columns), SOURCE)},
        Skipped(count=sum(rows.skipped.count for rows in sources), first=first),
        note="; ".join(f"has {rows.source}, which {rows.note}" for rows in sources if rows.note),
        hint="".join(dict.fromkeys(rows.hint for rows in sources)),
        sources=tuple(sources),
        weights=tuple(weights),
        decoded=None if any(rows.decoded is None for rows in sources) else DecodedRows(),
    )


@dataclass(frozen=True)
class Mixture:
    """The examples of several sources, and how many of each an epoch takes.

    Args:
        of: (examples,) the number of each example's source.
        sizes, counts: for each source how many examples it has, and how many an epoch takes of them.
        weights: as `MixedRows` has them.
    """

    of: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    weights: tuple[float, ...] = ()

    @classmethod
    def make(cls, rows: MixedRows, index: np.ndarray) -> Mixture:
        """Divide an epoch, of as many examples as there are, by the weights (DataError: a source gets no example)."""
        of = rows.of[index]
        sizes = np.bincount(of, minlength=len(rows.sources))
        if not sizes.all():
            source = rows.sources[int(np.argmin(sizes))].source
            raise DataError(f"nothing of {source} is left to train on. Take it out of data.train.")
        if not rows.weights:
            return cls(of, sizes, sizes)
        exact = np.array(rows.weights) / sum(rows.weights) * len(of)
        counts = np.floor(exact).astype(int)
        counts[np.argsort(counts - exact, kind="stable")[: len(of) - counts.sum()]] += 1  # the largest remainders
        if not counts.all():
            one, weight = rows.sources[int(np.argmin(counts))].source, rows.weights[int(np.argmin(counts))]
            raise DataError(
                f"{one} has weight {weight:,g} of {sum(rows.weights):,g}, which is less than one of the {len(of):,} "
                "examples of an epoch. Raise its weight in data.train, or take it out."
            )
        return cls(of, sizes, counts, rows.weights)

    @property
    def weighted(self) -> bool:
        """Whether an epoch is another than each example once."""
        return bool((self.sizes != self.counts).any())

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return the examples of an epoch in order, a function of the arguments.

        Each source is gone through in a new order again and again, from where the epoch before came to, so that no
        example of it comes more than once more often than another.
        """
        drawn = []
        for n, (size, count) in enumerate(zip(self.sizes.tolist(), self.counts.tolist(), strict=True)):
            members, at, end = np.flatnonzero(self.of == n), epoch * count, (epoch + 1) * count
            while at < end:
                round_, begin = divmod(at, size)
                order = np.random.default_rng([seed, n, round_, _ROUND]).permutation(size)
                taken = order[begin : begin + end - at]
                drawn.append(members[taken])
                at += len(taken)
        examples = np.concatenate(drawn)
        return examples[np.random.default_rng([seed, epoch]).permutation(len(examples))]

    def with_shares(self, facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return facts of each source with its weight, and how many of its examples an epoch takes."""
        weights = self.weights or [None] * len(facts)
        taken = zip(facts, weights, self.counts.tolist(), strict=True)
        return [{**one, "weight": weight, "an_epoch": count} for one, weight, count in taken]
