"""Intervals for metrics that lie between 0 and 1.

Resampling twenty right answers gives twenty right answers, so the bootstrap's interval at 0 or 1 has no
width and next to them too little. Score intervals do not have this fault; the bootstrap still contributes
what they need to know of the data, a variance and a correlation.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri

from ftengine.evaluation.resampling import CONFIDENCE, Interval, percentile_interval


def score_interval(
    value: float, resampled: np.ndarray, trials: float, n: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the Wilson score interval at the effective number of trials; (None, None) where it is undefined.

    Args:
        value: in [0, 1].
        resampled: (B,) the figure in each resample; nan where undefined.
        trials: the most independent trials that can be behind the figure.
        n: examples; a bound on the trials where nothing varies, since examples are what was sampled.
        confidence: of the interval.
    """
    effective = effective_trials(value, resampled, trials, n)
    return (None, None) if effective is None else wilson(value, effective, confidence)


def excess_interval(values: np.ndarray, proportion: np.ndarray, trials: float, n: int) -> Interval:
    """Return the interval of a mean minus a proportion from the intervals of the two and their correlation.

    Zou and Donner 2008, "Construction of confidence limits about effect measures: a general approach", doi:
    10.1002/sim.3095. The bootstrap alone has next to no width where nearly all trials succeed.

    Args:
        values: (1 + B,) the mean minus the proportion, plain and in each resample.
        proportion: (1 + B,) the proportion.
        trials: the most independent trials behind it.
        n: examples.
    """
    mean = values + proportion
    share, average = float(proportion[0]), float(mean[0])
    of_share = score_interval(share, proportion[1:], min(trials, n), n)
    of_mean = percentile_interval(mean[1:], n)
    if of_mean == (None, None) and _variance(mean[1:]) == 0 and of_share != (None, None):
        of_mean = average, average  # all means are the same, so what varies is the proportion
    return difference_interval(share, average, of_share, of_mean, proportion[1:], mean[1:])


def effective_trials(value: float, resampled: np.ndarray, trials: float, n: float) -> float | None:
    """Return the coin tosses whose mean varies as much as the bootstrap says that a figure does.

    For a plain proportion that is the number of examples (Korn & Graubard 1998). The arguments are those of
    `score_interval`.
    """
    if n < 2 or math.isnan(value):
        return None
    variance = _variance(resampled)
    effective = min(trials, value * (1 - value) / variance if variance > 0 else n)
    return effective if effective > 0 else None


def wilson(value: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion seen in so many trials."""
    z = float(ndtri((1 + confidence) / 2))
    ratio = z * z / trials
    center = (value + ratio / 2) / (1 + ratio)
    half = z / (1 + ratio) * math.sqrt((value * (1 - value) + ratio / 4) / trials)
    # Rounding must not push an end past the value that it encloses, nor out of [0, 1].
    return max(0.0, min(value, center - half)), min(1.0, max(value, center + half))


def difference_interval(
    base: float,
    tuned: float,
    base_interval: Interval,
    tuned_interval: Interval,
    base_resampled: np.ndarray,
    tuned_resampled: np.ndarray,
) -> Interval:
    """Return the 95 % interval of tuned - base from the two score intervals and their correlation.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data": method 10 without its correction of the correlation, which needs a fourfold table. The
    correlation is that of the paired resamples, 0 where one of the two does not vary.
    """
    if None in (*base_interval, *tuned_interval):
        return None, None
    return newcombe(base, tuned, base_interval, tuned_interval, correlation(base_resampled, tuned_resampled))


def newcombe(base: float, tuned: float, base_interval: Interval, tuned_interval: Interval, r: float) -> Interval:
    """Return the interval of tuned - base from two intervals and the correlation `r` of the two figures."""
    (base_low, base_high), (tuned_low, tuned_high) = base_interval, tuned_interval
    if base_low is None or base_high is None or tuned_low is None or tuned_high is None:
        return None, None
    low = _distance(tuned - tuned_low, base_high - base, r)
    high = _distance(tuned_high - tuned, base - base_low, r)
    return tuned - base - low, tuned - base + high


def _distance(a: float, b: float, r: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * r * a * b + b * b))


def _variance(resampled: np.ndarray) -> float:
    """Return the variance of the defined resamples; 0 where they differ by rounding alone."""
    known = resampled[~np.isnan(resampled)]
    if not len(known) or np.ptp(known) <= 1e-12:  # a proportion of n moves by 1/n at least
        return 0.0
    return float(known.var())


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of two figures over resamples; 0 where one of them does not vary."""
    known = ~np.isnan(x + y)
    x, y = x[known], y[known]
    if _variance(x) == 0 or _variance(y) == 0:
        return 0.0
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
