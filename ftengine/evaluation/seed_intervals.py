"""Intervals over seeds and examples together, from the resamples of each seed's figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from ftengine.api import Difference, Estimate
from ftengine.api.metric import Test
from ftengine.evaluation.chance import is_beyond_chance
from ftengine.evaluation.figures import ResampledFigure
from ftengine.evaluation.intervals import CONFIDENCE, correlation, effective_trials, subtracted_interval, wilson

ANY = (-math.inf, math.inf)
MOST_SEEDS = 100
"""Seeds up to which it is computed how many would settle a question."""


@dataclass(frozen=True)
class Variance:
    """Components of the variance of a mean over S seeds, each measured on the same n examples (both at random).

    Args:
        seed: variance between seeds, without that due to examples.
        example: variance of the mean over examples that all seeds share.
        both: variance of the interaction (seed × example).
        seeds: S.
        examples: n, the effective number of groups.
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
        both = _unbiased(examples) * float((resampled - resampled.mean(axis=0)).var(axis=1).sum()) / (seeds - 1)
        example = max(0.0, _unbiased(examples) * float(resampled.mean(axis=0).var()) - both / seeds)
        seed = max(0.0, float(values.var(ddof=1)) - both)
        return cls(seed, example, both, seeds, examples)

    def between(self, seeds: int | None = None) -> float:
        """Return the variance of the mean over so many seeds on the same examples."""
        return (self.seed + self.both) / (seeds or self.seeds)

    def error(self, seeds: int | None = None) -> tuple[float, float]:
        """Return the standard error of the mean over so many seeds, and its degrees of freedom."""
        return _error([(self.between(seeds), (seeds or self.seeds) - 1), (self.example, self.examples - 1)])


@dataclass(frozen=True)
class SeedFigure:
    """The mean of a figure over seeds, with an interval that covers other seeds and other examples.

    Args:
        values: of each seed.
        mean: their mean.
        low, high: ends of the 95 % interval of the mean; None where it cannot be computed.
        p: two-sided p-value of a mean of zero; None as `low`.
        between: standard deviation between seeds, without that due to examples.
        error: standard error over examples that all seeds share.
        settled_by: if the interval contains zero, the number of seeds at which it would not, given the same mean and
            spread; None if `MOST_SEEDS` are too few, or if it does not contain zero. Of several differences that are
            tested together, by an interval at their adjusted level (Bonferroni).
        test: what `p` is from: Student's t; the sign test where neither seeds nor examples vary.
    """

    values: tuple[float | None, ...]
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    between: float | None = None
    error: float | None = None
    settled_by: int | None = None
    test: Test | None = None

    def estimate(self, like: ResampledFigure) -> Estimate:
        """Return it as the figure of a model, with the counts of examples of one seed's."""
        return replace(like.estimate, value=_or_nan(self.mean), low=self.low, high=self.high)

    def difference(self, like: ResampledFigure) -> Difference:
        """Return it as a difference of a metric, which is better or worse if it is beyond chance."""
        plain = Difference(_or_nan(self.mean), self.low, self.high, self.p, None, test=self.test)
        higher = like.metric.higher_is_better
        known = higher is not None and is_beyond_chance(plain)
        return replace(plain, better=(plain.value > 0) == higher) if known else plain


def mean_over_seeds(figures: Sequence[ResampledFigure]) -> SeedFigure:
    """Return the mean of each seed's figure on the same examples.

    A proportion has Wilson's interval, with the trials that have the variance of the mean: where nearly all answers are
    right, Student's t is too narrow.
    """
    one, (values, drawn) = figures[0], _drawn(figures)
    over = seed_figure(values, drawn, one.size, bounds=(0, 1) if one.metric.proportion else ANY)
    if over.low is None or over.mean is None or one.trials is None:
        return over
    error, freedom = Variance.of(np.array(values), _defined(drawn), one.size).error()
    trials = effective_trials(over.mean, _defined(drawn).mean(axis=0), one.trials, one.size, one.freedom)
    if trials is None:
        return over
    if error > 0:
        trials = min(trials, over.mean * (1 - over.mean) / error**2)
    low, high = wilson(over.mean, trials, freedom=freedom)
    return replace(over, low=low, high=high)


def difference_over_seeds(before: Sequence[ResampledFigure], after: Sequence[ResampledFigure]) -> SeedFigure:
    """Return the mean of each seed's second figure minus its first, such as its base's."""
    (old, olds), (new, news) = _drawn(before), _drawn(after)
    values, drawn = ([second - first for first, second in zip(*of, strict=True)] for of in ((old, new), (olds, news)))
    over = seed_figure(values, drawn, after[0].size, bounds=_difference_bounds(after))
    return _of_proportions(over, before, after)


def difference_of_recipes(
    first: Sequence[ResampledFigure], second: Sequence[ResampledFigure], *, tests: int = 1
) -> SeedFigure:
    """Return the mean over one recipe's seeds minus that over another's, whose seeds are others.

    `tests` is the number of differences that are tested together, which `settled_by` allows for.
    """
    (own, owns), (other, others) = _drawn(first), _drawn(second)
    bounds = _difference_bounds(first)
    over = difference_of_means(own, other, (owns, others), first[0].size, bounds=bounds, tests=tests)
    return _of_proportions(over, second, first)


def _of_proportions(
    over: SeedFigure, before: Sequence[ResampledFigure], after: Sequence[ResampledFigure]
) -> SeedFigure:
    """Return a difference of proportions that do not vary with the interval that follows from those of its sides."""
    if over.test != "sign" or before[0].trials is None:
        return over
    sides = [mean_over_seeds(side) for side in (before, after)]
    r = correlation(*(np.mean(_drawn(side)[1], axis=0) for side in (before, after)))
    first, second = ((side.low, side.high) for side in sides)
    low, high = subtracted_interval(_or_nan(sides[0].mean), _or_nan(sides[1].mean), first, second, r)
    return replace(over, low=low, high=high)


def _drawn(figures: Sequence[ResampledFigure]) -> tuple[list[float], list[np.ndarray]]:
    return [figure.value for figure in figures], [figure.resampled for figure in figures]


def _difference_bounds(figures: Sequence[ResampledFigure]) -> tuple[float, float]:
    return (-1, 1) if figures[0].metric.proportion else ANY


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def seed_figure(
    values: Sequence[float], resampled: Sequence[np.ndarray], examples: float, *, bounds: tuple[float, float] = ANY
) -> SeedFigure:
    """Return the mean over seeds of a figure (S,) with resamples (S, B), and its interval.

    Examples and seeds are crossed random effects: each seed answers all examples. The interval is Student's t on the
    sum of the variance components (`Variance`), and never beyond `bounds`.
    """
    plain = tuple(None if math.isnan(value) else value for value in values)
    if None in plain or len(plain) < 2:
        return SeedFigure(plain, None if None in plain else float(np.mean(values)))
    mean, drawn = float(np.mean(values)), _defined(resampled)
    if not drawn.size or examples < 2:
        return SeedFigure(plain, mean)
    variance = Variance.of(np.array(values), drawn, examples)
    low, high, p, test = _interval(mean, *variance.error(), examples, bounds)
    settled_by = _settled_by(mean, variance.error, len(plain))
    between, error = math.sqrt(variance.seed), math.sqrt(variance.example)
    return SeedFigure(plain, mean, low, high, p, between, error, settled_by, test)


def difference_of_means(
    first: Sequence[float],
    second: Sequence[float],
    drawn: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    examples: float,
    *,
    bounds: tuple[float, float] = ANY,
    tests: int = 1,
) -> SeedFigure:
    """Return the mean over one set of seeds minus that over another, independent one, on the same examples.

    `drawn` are the resamples of both; a resample gives an example the same weight everywhere. `tests` is as of
    `difference_of_recipes`.
    """
    values = np.array(first), np.array(second)
    some = _defined([*drawn[0], *drawn[1]])
    mean = float(values[0].mean() - values[1].mean())
    if not some.size or math.isnan(mean) or examples < 2:
        return SeedFigure((), None if math.isnan(mean) else mean)
    parts = some[: len(first)], some[len(first) :]
    own = [Variance.of(of, part, examples) for of, part in zip(values, parts, strict=True)]
    shared = _unbiased(examples) * float((parts[0].mean(axis=0) - parts[1].mean(axis=0)).var())
    shared = max(0.0, shared - sum(one.both / one.seeds for one in own))

    def error(seeds: int | None = None) -> tuple[float, float]:
        return _error([*((one.between(seeds), (seeds or one.seeds) - 1) for one in own), (shared, examples - 1)])

    low, high, p, test = _interval(mean, *error(), examples, bounds)
    settled_by = _settled_by(mean, error, max(one.seeds for one in own), tests)
    between = math.sqrt(sum(one.seed / one.seeds for one in own))
    return SeedFigure((), mean, low, high, p, between, math.sqrt(shared), settled_by, test)


def _unbiased(examples: float) -> float:
    return examples / (examples - 1) if examples > 1 else 1.0


def _defined(resampled: Sequence[np.ndarray]) -> np.ndarray:
    """Return resamples (S, B) without those in which the figure of a seed is undefined."""
    drawn = np.stack(resampled)
    return drawn[:, ~np.isnan(drawn).any(axis=0)]


def _error(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the root of a sum of variances, and its degrees of freedom by Satterthwaite (1946, doi:10.2307/3002019).

    `parts` are the variances, each with its own degrees of freedom.
    """
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / max(1.0, freedom) for variance, freedom in parts)
    return math.sqrt(total), total**2 / spread if spread else math.inf


def _interval(
    mean: float, error: float, freedom: float, examples: float, bounds: tuple[float, float]
) -> tuple[float, float, float, Test]:
    """Return the ends of the 95 % interval, the two-sided p-value of zero, and its test.

    If nothing varies, all examples have the same figure, and p is that of the sign test, as of `t_test`.
    """
    if error <= 1e-12:  # rounding
        return mean, mean, 2.0 ** (1 - examples) if abs(mean) > 1e-12 else 1.0, "sign"
    half = _quantile(freedom) * error
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return low, high, float(2 * scipy.special.stdtr(freedom, -abs(mean) / error)), "t"


def _settled_by(
    mean: float, error: Callable[[int | None], tuple[float, float]], seeds: int, tests: int = 1
) -> int | None:
    """Return the number of seeds, more than there are, at which an interval would not contain zero.

    None if it does not contain zero already, or if `MOST_SEEDS` are too few.
    """
    for more in (None, *range(seeds + 1, MOST_SEEDS + 1)):
        of_mean, freedom = error(more)
        if abs(mean) > _quantile(freedom, tests) * of_mean:
            return more
    return None


def _quantile(freedom: float, tests: int = 1) -> float:
    return float(scipy.special.stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * tests)))
