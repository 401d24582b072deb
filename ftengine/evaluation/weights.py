"""The Poisson bootstrap's weights: how often each group of rows counts in each resample.

Chamandy, Muralidharan, Najmi & Naidu 2012, "Estimating uncertainty for massive data streams".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

CHUNK = 2**24
"""Weights that are there at once, a byte each."""
KEPT = 2**26
"""Weights that are kept for the next who asks, a byte each; more of them are drawn anew."""


class Weights:
    """Weights of n rows in B resamples: independent between groups, Poisson with mean 1, equal within a group.

    A group is a unit of independent sampling: a patient with all rows, or, without a group column, an example with its
    duplicates. Its weight is a function of (seed, resample, group number). So two models get equal weights on the same
    examples, which pairs them, and fewer resamples are a prefix of more.

    Args:
        groups: (n,) equal for rows of one group.
        duplicates: (n,) equal for duplicates, which are always in one group; None if groups hold nothing but
            duplicates.
    """

    def __init__(self, groups: np.ndarray, seed: int, resamples: int, *, duplicates: np.ndarray | None = None) -> None:
        self.seed, self.resamples = seed, resamples
        self._codes = np.unique(groups, return_inverse=True)[1].ravel().astype(np.int64)
        self.duplicates = self._codes if duplicates is None else duplicates
        self._whole: Weights | None = None
        self._members: np.ndarray | None = None
        self._kept: list[np.ndarray] = []
        self.groups = int(self._codes.max()) + 1 if len(self._codes) else 0
        self.examples = self.groups if duplicates is None else len(np.unique(duplicates))
        """Distinct ones."""

    @property
    def grouped(self) -> bool:
        """Whether some group has more than one distinct example."""
        return self.groups < self.examples

    @property
    def freedom(self) -> float:
        """Degrees of freedom of a proportion's variance: infinite if each example is its own group."""
        return max(self.worth() - 1, 0.0) if self.grouped else math.inf

    def worth(self, unequal: np.ndarray | None = None) -> float:
        """Return the equivalent number of groups of equal weight (`kish`), given (n,) weights of rows."""
        return kish(np.bincount(self._codes, unequal)) if len(self) else 0.0

    def __len__(self) -> int:
        return len(self._codes)

    def under(self, mask: np.ndarray) -> Weights:
        """Return the same weights for a subset of the rows; `mask` is (n,) bool."""
        if mask.all():
            return self
        part = Weights(self._codes[mask], self.seed, self.resamples, duplicates=self.duplicates[mask])
        part._whole, part._members = self, np.flatnonzero(mask)
        return part

    def share(self, mask: np.ndarray) -> bool:
        """Return whether some group has rows both inside and outside of a mask, (n,) bool."""
        return len(np.intersect1d(self._codes[mask], self._codes[~mask])) > 0

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the weights of b resamples at a time, (b, n) uint8, read-only."""
        if self._whole is not None:
            for chunk in self._whole.chunks():
                yield chunk[:, self._members]
            return
        if self._kept:
            yield from self._kept
            return
        step = max(1, CHUNK // max(1, len(self)))
        drawn = []
        for start in range(0, self.resamples, step):
            chunk = self._drawn(range(start, min(start + step, self.resamples)))
            if self.resamples * len(self) <= KEPT:
                drawn.append(chunk)
            yield chunk
        self._kept = drawn

    def resample(self, values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Apply a function of weights (b, n) that returns (b, …) to all resamples; return (B, …)."""
        with np.errstate(all="ignore"):  # resamples may well be without a class or a token; that is nan, no warning
            return np.concatenate([np.asarray(values(chunk), dtype=np.float64) for chunk in self.chunks()])

    def _drawn(self, numbers: range) -> np.ndarray:
        """Return the weights (b, n) of some resamples; each has a stream of its own, whatever is drawn beside it."""
        raw = np.empty((len(numbers), -(-self.groups // 4)), dtype=np.uint64)  # a 64-bit word makes four weights
        generator = np.random.Philox(key=self.seed % 2**64)
        state = generator.state  # set back for each resample: a new generator asks the system for entropy first
        for row, number in zip(raw, numbers, strict=True):
            state["state"]["key"][1] = number
            generator.state = state
            row[:] = generator.random_raw(row.size)
        return _poisson_quantiles()[raw.astype("<u8").view("<u2")][:, self._codes]


def kish(weights: np.ndarray) -> float:
    """Return the effective sample size of weights, (Σw)² / Σw² (Kish 1965, §8.2)."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / np.square(weights).sum()) if weights.any() else 0.0


@cache
def _poisson_quantiles() -> np.ndarray:
    """Return Poisson(1)'s quantile for each 16-bit uniform; mean exactly 1, variance 1 - 3e-5."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(20)])
    return np.searchsorted(cumulative, (np.arange(2**16) + 0.5) / 2**16).astype(np.uint8)
