"""Mixing of several sources, and the order of an epoch by their weights."""

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
"""The column that names a row's source."""
_OF, _ROW = "source", "row"
_ROUND = 1
"""Separates the seed of a source's round from that of an epoch: numpy ignores zeros at the end of a seed."""


@dataclass(frozen=True)
class MixedRows(DataRows):
    """Rows of several sources, one source after another; `dataset` has for each row the numbers of source and row.

    Args:
        sources: the rows of each source.
        weights: each source's relative share of an epoch; () if an epoch has each row once.
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
        """Return the place of a row in its source."""
        return self.sources[self.of[int(index)]].where(int(self._places[_ROW][int(index)]))

    def content_hash(self, index: int) -> str:
        """Return the hash of a row in its source."""
        return self.sources[self.of[int(index)]].content_hash(int(self._places[_ROW][int(index)]))

    def counted(self, index: np.ndarray, **values: np.ndarray) -> list[dict[str, Any]]:
        """Return for each source the number of rows and of examples in `index`, and the sums of `values` over them."""
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
    """Concatenate rows of several sources (DataError: one has a column with the name of `SOURCE`)."""
    from datasets import Dataset

    for rows in sources:
        if SOURCE in rows.columns:
            raise DataError(
                f"{rows.source} has a column {SOURCE!r}, which is reserved for the name of a row's source. Rename it."
            )
    sizes = [len(rows) for rows in sources]
    dataset = Dataset.from_dict(
        {_OF: np.repeat(np.arange(len(sizes)), sizes), _ROW: np.concatenate([np.arange(size) for size in sizes])}
    )
    first = tuple(skip for rows in sources for skip in rows.skipped.first)[:SHOWN_SKIPS]
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
    """How many examples of each source an epoch takes.

    Args:
        of: (examples,) the number of each example's source.
        sizes, counts: (sources,) how many examples each source has, and how many of them an epoch takes.
        weights: as `MixedRows` has them.
    """

    of: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    weights: tuple[float, ...] = ()

    @classmethod
    def make(cls, rows: MixedRows, index: np.ndarray) -> Mixture:
        """Divide an epoch, which has as many examples as there are, by weight (DataError: a source gets no example)."""
        of = rows.of[index]
        sizes = np.bincount(of, minlength=len(rows.sources))
        if not sizes.all():
            source = rows.sources[int(np.argmin(sizes))].source
            raise DataError(f"no row of {source} is left to train on. Take it out of data.train.")
        if not rows.weights:
            return cls(of, sizes, sizes)
        exact = np.array(rows.weights) / sum(rows.weights) * len(of)
        counts = np.floor(exact).astype(int)
        counts[np.argsort(counts - exact, kind="stable")[: len(of) - counts.sum()]] += 1  # the largest remainders
        if not counts.all():
            least = int(np.argmin(counts))
            raise DataError(
                f"{rows.sources[least].source} has weight {rows.weights[least]:,g} of {sum(rows.weights):,g}, less "
                f"than one of the {len(of):,} examples of an epoch. Raise its weight in data.train, or take it out."
            )
        return cls(of, sizes, counts, rows.weights)

    @property
    def weighted(self) -> bool:
        """Whether an epoch has something other than each example once."""
        return bool((self.sizes != self.counts).any())

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return the examples of an epoch in order; the result depends only on the arguments.

        Each source is traversed repeatedly, each time in a new order, and an epoch continues where the one before
        stopped. So how often two examples of a source occur differs by one at most.
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
        """Add to the facts of each source its weight and how many of its examples an epoch takes."""
        weights = self.weights or [None] * len(facts)
        counts = zip(facts, weights, self.counts.tolist(), strict=True)
        return [{**source, "weight": weight, "an_epoch": count} for source, weight, count in counts]
