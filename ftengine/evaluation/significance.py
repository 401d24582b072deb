"""Tests: p-values of differences, alone and among many, and the difference that a test would find."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

from ftengine.api import ExampleScores
from ftengine.evaluation.intervals import CONFIDENCE, standard_error
from ftengine.evaluation.weights import Weights

POWER = 0.8
"""How often a test should find a difference that is called detectable."""


def t_p(value: float, resampled: np.ndarray, n: float) -> float | None:
    """Return the two-sided p-value of a difference being zero by Student's t on its bootstrap standard error.

    Of rows in groups, n is what the groups are worth, and the test is a cluster-robust one. It has no least value, as a
    share of resamples has, so that it can be adjusted for many tests. Where resamples do not vary, every example
    differs by the same: then it is the sign test's, 2^(1 - n).
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
    determination and power analysis for clinical trials", with t for z).
    """
    if (error := standard_error(resampled, n)) is None:
        return None
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) + stdtrit(n - 1, POWER)) * error


def mcnemar(base: ExampleScores, tuned: ExampleScores, weights: Weights) -> dict[str, Any] | None:
    """Count what both, one or neither got right, and test whether tuned is right more or less often.

    McNemar's exact test: under no difference, the examples that only one of the two got right fall to either like the
    toss of a coin. Of duplicates the first counts. There is no such p-value where examples come in groups, whose tosses
    are not independent. None where nothing is right or wrong.
    """
    known = ~np.isnan(base.right + tuned.right)
    if not known.any():
        return None
    weights = weights.under(known)
    members = np.flatnonzero(known)[np.unique(weights.duplicates, return_index=True)[1]]
    before, after = (side.right[members].astype(int) for side in (base, tuned))
    neither, only_tuned, only_base, both = np.bincount(2 * before + after, minlength=4).tolist()
    p = None
    if not weights.grouped:  # both tails of a binomial distribution of probability 1/2
        p = min(1.0, 2 * float(bdtr(min(only_base, only_tuned), only_base + only_tuned, 0.5)))
    return {"both": both, "only_base": only_base, "only_tuned": only_tuned, "neither": neither, "p": p}
