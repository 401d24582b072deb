"""Intervals over seeds and examples together, from the resamples of each seed's figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

CONFIDENCE = 0.95
MOST_SEEDS = 100
"""Seeds up to which it is computed how many would settle a question."""


@dataclass(frozen=True)
class Variance:
    """Components of the variance of a mean over S seeds, each measured on the same n examples (both at random).

    Args:
        seed: variance between seeds, without what the examples cause.
        example: variance of the mean over examples that all seeds share.
        both: variance of one seed's figure over the examples that is its own (seed × example).
        seeds: S.
        examples: n, as groups of equal weight.
    """

    seed: float
    example: float
    both: float
    seeds: int
    examples: float

    @classmethod
    def of(cls, values: np.ndarray, resampled: np.ndarray, examples: float) -> Variance:
        """Estimate the components by the method of moments.

        Args:
            values: (S,) the figure of each seed.
            resampled: (S, B) its resamples; a resample gives an example the same weight in all seeds.
            examples: number of examples, as groups of equal weight.
        """
        seeds = len(values)
        defined = resampled[:, ~np.isnan(resampled).any(axis=0)]
        unbiased = examples / (examples - 1) if examples > 1 else 1.0
        own = defined - defined.mean(axis=0)
        both = unbiased * float(own.var(axis=1).sum()) / (seeds - 1)
        example = max(0.0, unbiased * float(defined.mean(axis=0).var()) - both / seeds)
        seed = max(0.0, float(values.var(ddof=1)) - both)
        return cls(seed, example, both, seeds, examples)

    def error(self, seeds: int | None = None) -> tuple[float, float]:
        """Return the standard error of the mean over so many seeds, and its degrees of freedom.

        The degrees of freedom are Satterthwaite's (1946, doi:10.2307/3002019), of the mean square between seeds with
        S - 1 and that between examples with n - 1.
        """
        seeds = seeds or self.seeds
        between, shared = (self.seed + self.both) / seeds, self.example
        total = between + shared
        parts = between**2 / (seeds - 1) + shared**2 / max(1.0, self.examples - 1)
        return math.sqrt(total), total**2 / parts if parts else math.inf


@dataclass(frozen=True)
class SeedFigure:
    """The mean of a figure over seeds, with an interval that covers other seeds and other examples.

    Args:
        values: of each seed.
        mean: their mean.
        low, high: ends of the 95 % interval of the mean; None where it cannot be computed.
        p: two-sided p-value of a mean of zero; None as `low`.
        between: standard deviation between seeds, without what the examples cause.
        error: standard error over examples that all seeds share.
        settled_by: for a mean whose interval holds zero, the number of seeds from which it would not, if spread and mean
            stayed; None if `MOST_SEEDS` are too few, or if it does not hold zero.
    """

    values: tuple[float | None, ...]
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    between: float | None = None
    error: float | None = None
    settled_by: int | None = None


def seed_figure(values: Sequence[float], resampled: Sequence[np.ndarray], examples: float) -> SeedFigure:
    """Return the mean over seeds of a figure (S,) with resamples (S, B), and its interval.

    Rows and seeds are crossed random effects: each seed answers all examples. The interval is Student's t on the sum of
    the variance components (`Variance`).
    """
    plain = tuple(None if math.isnan(value) else value for value in values)
    if None in plain or len(plain) < 2:
        return SeedFigure(plain, None if None in plain else float(np.mean(values)))
    mean, drawn = float(np.mean(values)), np.stack(resampled)
    if np.isnan(drawn).all(axis=1).any() or examples < 2:
        return SeedFigure(plain, mean)
    variance = Variance.of(np.array(values), drawn, examples)
    error, freedom = variance.error()
    if error == 0:
        return SeedFigure(plain, mean, mean, mean, None, 0.0, 0.0)
    half = _quantile(freedom) * error
    p = float(2 * scipy.stats.t.sf(abs(mean) / error, freedom))
    settled_by = None if abs(mean) > half else _settled_by(mean, variance)
    return SeedFigure(
        plain, mean, mean - half, mean + half, p, math.sqrt(variance.seed), math.sqrt(variance.example), settled_by
    )


def _settled_by(mean: float, variance: Variance) -> int | None:
    for seeds in range(variance.seeds + 1, MOST_SEEDS + 1):
        error, freedom = variance.error(seeds)
        if abs(mean) > _quantile(freedom) * error:
            return seeds
    return None


def _quantile(freedom: float) -> float:
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
