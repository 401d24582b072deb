"""The Poisson bootstrap: weights, percentile intervals and p-values of what was resampled.

Chamandy, Muralidharan, Najmi & Naidu 2012, "Estimating uncertainty for massive data streams".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

CONFIDENCE = 0.95
POWER = 0.8
"""How often a test should find a difference that is called detectable."""
KEPT = 8192
"""Examples whose weights are kept, a byte a resample: 8 MB at 1,000 resamples."""
Interval = tuple[float | None, float | None]


def poisson_weights(seed: int, indices: Sequence[int], resamples: int) -> np.ndarray:
    """Draw how often each example occurs in each resample: independent, Poisson with mean 1.

    A weight is a function of (seed, index, resample) alone: the counter-based generator Philox is keyed
    with seed and index. So an example has the same weights under base and tuned model, on any rank and in
    any order, and fewer resamples are a prefix of more.

    Args:
        seed: any non-negative integer.
        indices: (n,) positions of the examples in their split.
        resamples: number of resamples.

    Returns:
        (n, resamples) float64, whole numbers from 0 to 8.
    """
    words = -(-resamples // 4)  # a 64-bit word makes four weights
    weights = np.empty((len(indices), 4 * words))
    for row, index in zip(weights, indices, strict=True):
        row[:] = _weights_of(seed % 2**64, int(index), words)
    return weights[:, :resamples]


@lru_cache(maxsize=KEPT)
def _weights_of(seed: int, index: int, words: int) -> np.ndarray:
    """Return one example's weights, (4 · words,) uint8. Slices and evaluators' passes ask for the same ones again."""
    key = np.array([seed, index], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(words).astype("<u8")
    return _poisson_quantiles()[raw.view("<u2")]


@cache
def _poisson_quantiles() -> np.ndarray:
    """Return Poisson(1)'s quantile for each 16-bit uniform; mean exactly 1, variance 1 - 3e-5."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(20)])
    return np.searchsorted(cumulative, (np.arange(2**16) + 0.5) / 2**16).astype(np.uint8)


def percentile_interval(resampled: np.ndarray, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval between two order statistics of a resampled figure.

    Plain percentiles are too narrow for few examples, as a z-interval with divisor n would be. The levels
    are therefore moved outwards, by as much as Student's t interval is wider (the expanded percentile
    interval of Hesterberg 2015, arXiv:1411.5279). tests/evaluation/test_coverage.py has what it covers.

    Args:
        resampled: (B,); nan (a resample where the figure is undefined) is left out.
        n: examples; where they weigh unequally, how many of equal weight they are worth.
        confidence: of the interval.

    Returns:
        (low, high), or (None, None) where B resamples cannot resolve the tails (with 1,000 for n < 6), and where all
        of them are the same, which says nothing of what other examples would show.
    """
    known = np.sort(resampled[~np.isnan(resampled)])
    if n < 2 or not len(known) or known[0] == known[-1]:
        return None, None
    level = ndtr(-_expansion(n) * stdtrit(n - 1, (1 + confidence) / 2))
    rank = int((len(known) + 1) * level)  # the (B + 1)·level-th smallest (Davison & Hinkley 1997, §5.2)
    if rank < 1:
        return None, None
    return float(known[rank - 1]), float(known[-rank])


def p_value(resampled: np.ndarray, n: float) -> float | None:
    """Return the two-sided p-value of a resampled difference being zero.

    It is the level at which `percentile_interval` just reaches zero: the share of resamples on the far side
    of zero, with one more in numerator and denominator so that it is never 0, taken through the same
    expansion. A resample of exactly zero speaks for both sides, so that differences that rest on a handful
    of examples are not called significant.
    """
    known = resampled[~np.isnan(resampled)]
    if n < 2 or not len(known):
        return None
    tail = (1 + min((known <= 0).sum(), (known >= 0).sum())) / (len(known) + 1)
    return min(1.0, 2 * float(stdtr(n - 1, ndtri(min(tail, 0.5)) / _expansion(n))))


def standard_error(resampled: np.ndarray, n: float) -> float | None:
    """Return the standard error of a resampled figure of n examples; None where nothing varies or too little is known.

    The bootstrap's standard deviation, expanded as the intervals are.
    """
    known = resampled[~np.isnan(resampled)]
    if n < 2 or not len(known) or np.ptp(known) == 0:
        return None
    return float(known.std()) * _expansion(n)


def t_p_value(value: float, resampled: np.ndarray, n: float) -> float | None:
    """Return the two-sided p-value of a difference being zero by Student's t on its bootstrap standard error.

    Unlike `p_value`, which ends at about 2/(B + 1), it has no least value, so that it can be adjusted for many tests.
    Where resamples do not vary, every example differs by the same: then it is the sign test's, 2^(1 - n).

    Args:
        value: the difference.
        resampled: (B,) the difference in each resample.
        n: examples.

    Returns:
        None for n < 2 and where no resample has a value.
    """
    if n < 2 or math.isnan(value) or np.isnan(resampled).all():
        return None
    if value == 0:
        return 1.0
    error = standard_error(resampled, n)
    return 2.0 ** (1 - n) if error is None else 2 * float(stdtr(n - 1, -abs(value) / error))


def detectable(resampled: np.ndarray, n: float) -> float | None:
    """Return the smallest true difference that a two-sided test at 5 % finds in four of five samples of this size.

    (t₀.₉₇₅ + t₀.₈) standard errors with n - 1 degrees of freedom (Lachin 1981, "Introduction to sample size
    determination and power analysis for clinical trials", with t for z). tests/evaluation/test_power.py has the
    power that was found.

    Args:
        resampled: (B,) the paired difference in each resample.
        n: examples.
    """
    error = standard_error(resampled, n)
    if error is None:
        return None
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) + stdtrit(n - 1, POWER)) * error


def _expansion(n: float) -> float:
    """Return how much the standard deviation with divisor n falls short of the one with n - 1."""
    return math.sqrt(n / (n - 1))
