"""Tests of differences: p-values, and the smallest detectable difference."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy

from ftengine.api import ExampleScores
from ftengine.api.metric import Test
from ftengine.evaluation.intervals import CONFIDENCE, standard_error
from ftengine.evaluation.weights import Weights

POWER = 0.8
"""How often a test should find a difference that is called detectable."""


class PValue(NamedTuple):
    """A two-sided p-value of no difference, and the test that it is from."""

    p: float
    test: Test


def t_test(value: float, resampled: np.ndarray, n: float) -> PValue | None:
    """Test whether a difference is zero by Student's t on its bootstrap standard error.

    For grouped rows, n is the effective number of groups, and the test is cluster-robust. Unlike a share of resamples,
    p has no lower limit, so it can be adjusted for many tests. If the resamples do not vary, all examples differ by the
    same amount, and p is that of the sign test, 2^(1 - n).
    """
    if n < 2 or math.isnan(value) or np.isnan(resampled).all():
        return None
    if value == 0:
        return PValue(1.0, "t")
    error = standard_error(resampled, n)
    return PValue(2.0 ** (1 - n), "sign") if error is None else student(value / error, n - 1, "t")


EXACT_TO = 13
"""Pairs up to which all ways to swap them are counted; of more, `SWAPPED` are drawn."""
SWAPPED = 9999


def swap_test(differences: np.ndarray, seed: int) -> float | None:
    """Return the two-sided p-value of a permutation test of no difference between paired values (n,).

    Fisher's randomisation test of the mean, exact for few pairs. Unlike Student's t, it detects differences of equal
    sign even if a few of them are far larger than the others.
    """
    n = len(differences)
    if n < 2 or np.isnan(differences).any():
        return None
    if n <= EXACT_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        drawn = np.random.default_rng(seed).choice([-1, 1], size=(SWAPPED, n))
        signs = np.concatenate([np.ones((1, n), dtype=int), drawn])
    sums = np.abs(signs @ differences)
    return float(np.mean(sums >= abs(differences.sum()) * (1 - 1e-9)))


def student(t: float, freedom: float, test: Test) -> PValue:
    """Return the two-sided p-value of Student's t."""
    return PValue(2 * float(scipy.special.stdtr(freedom, -abs(t))), test)


def detectable(resampled: np.ndarray, n: float) -> float | None:
    """Return the smallest true difference that a two-sided test at 5 % finds in four of five samples of this size.

    (t₀.₉₇₅ + t₀.₈) standard errors with n - 1 degrees of freedom (Lachin 1981, "Introduction to sample size
    determination and power analysis for clinical trials", with t for z).
    """
    if (error := standard_error(resampled, n)) is None:
        return None
    return float(scipy.special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) + scipy.special.stdtrit(n - 1, POWER)) * error


def mcnemar(base: ExampleScores, tuned: ExampleScores, weights: Weights) -> dict[str, Any] | None:
    """Count what both, one or neither got right, and test whether tuned is right more or less often.

    McNemar's exact test: without a difference, each example that only one model got right is the base's or the tuned
    model's with probability 1/2. Only the first of several duplicates counts. p is None for grouped examples, which are
    not independent. The result is None if answers are not right or wrong.
    """
    judged = ~np.isnan(base.right + tuned.right)
    if not judged.any():
        return None
    weights = weights.under(judged)
    members = np.flatnonzero(judged)[np.unique(weights.duplicates, return_index=True)[1]]
    before, after = (side.right[members].astype(int) for side in (base, tuned))
    neither, only_tuned, only_base, both = np.bincount(2 * before + after, minlength=4).tolist()
    p = None
    if not weights.grouped:  # both tails of a binomial distribution of probability 1/2
        p = min(1.0, 2 * float(scipy.special.bdtr(min(only_base, only_tuned), only_base + only_tuned, 0.5)))
    return {"both": both, "only_base": only_base, "only_tuned": only_tuned, "neither": neither, "p": p}
