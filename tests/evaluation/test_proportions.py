"""Score intervals of proportions and of their differences."""

import math

import numpy as np
import pytest
from scipy import stats

from ftengine.evaluation.proportions import difference_interval, score_interval

CERTAIN = np.ones(1000)


def resample(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Resampled means over the last axis."""
    weights = np.random.default_rng(seed).poisson(1, (1000, values.shape[-1]))
    return (weights @ values.T / weights.sum(axis=1, keepdims=values.ndim > 1)).T


@pytest.mark.parametrize("n", [2, 20, 1000])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_perfect_score_has_wilsons_interval(value, n):
    expected = stats.binomtest(int(value * n), n).proportion_ci(method="wilson")
    assert score_interval(value, CERTAIN * value, n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(18, 20), (37, 50), (199, 200)])
def test_a_plain_proportion_has_wilsons_interval(right, n):
    answers = np.arange(n) < right
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    low, high = score_interval(right / n, resample(answers), n, n)
    # The effective n is a variance of 1,000 resamples, whose excess kurtosis is at most 1 / wrong answers
    # (that of a Poisson sum): its relative error is below 3·sqrt((2 + 1/wrong) / 1000), a width's half that;
    # dividing by a random total adds 1/n in variance, and more where the figure itself varies with it.
    tolerance = 3 * math.sqrt((2 + 1 / (n - right)) / 1000) / 2 + 1 / n
    assert high - low == pytest.approx(expected.high - expected.low, rel=tolerance)
    assert low <= right / n <= high


def test_correlated_trials_count_less():
    answers = np.repeat(np.arange(50) < 40, 1)
    same_ten_times = score_interval(0.8, resample(answers), 500, 50)  # ten decisions an example, all alike
    once = score_interval(0.8, resample(answers), 50, 50)
    assert same_ten_times[1] - same_ten_times[0] == pytest.approx(once[1] - once[0], rel=0.05)


def test_without_variation_examples_are_the_trials():
    assert score_interval(1.0, CERTAIN, 5000, 50) == score_interval(1.0, CERTAIN, 50, 50)


def test_an_undefined_proportion_has_no_interval():
    assert score_interval(math.nan, CERTAIN * math.nan, 20, 20) == (None, None)
    assert score_interval(1.0, CERTAIN, 1, 1) == (None, None)
    assert score_interval(1.0, CERTAIN, 0, 20) == (None, None)


def newcombe(a, b, c, d):
    """The interval from a fourfold table: both right, only tuned right, only base right, both wrong."""
    n = a + b + c + d
    tuned, base = (a + b) / n, (a + c) / n
    l1, u1 = stats.binomtest(a + b, n).proportion_ci(method="wilson")
    l2, u2 = stats.binomtest(a + c, n).proportion_ci(method="wilson")
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = (a * d - b * c) / math.sqrt(margins) if margins else 0
    low = math.sqrt((tuned - l1) ** 2 - 2 * phi * (tuned - l1) * (u2 - base) + (u2 - base) ** 2)
    high = math.sqrt((u1 - tuned) ** 2 - 2 * phi * (u1 - tuned) * (base - l2) + (base - l2) ** 2)
    return tuned - base - low, tuned - base + high


def intervals(a, b, c, d):
    n = a + b + c + d
    tuned = np.repeat([1.0, 1, 0, 0], [a, b, c, d])
    base = np.repeat([1.0, 0, 1, 0], [a, b, c, d])
    resampled = resample(np.stack([base, tuned]))
    each = [score_interval(x.mean(), r, n, n) for x, r in zip((base, tuned), resampled, strict=True)]
    return difference_interval(base.mean(), tuned.mean(), *each, *resampled)


def test_the_reference_gives_the_published_interval():
    # Newcombe 1998's first example, where the correlation is negative and needs no correction.
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("table", [(36, 12, 2, 0), (30, 10, 4, 6), (150, 20, 5, 25)])
def test_difference_has_newcombes_interval(table):
    n = sum(table)
    # Widths inherit the relative error of the resampled variances, the correlation adds its own, both ~ 1/sqrt(1000).
    tolerance = (4 / math.sqrt(1000) + 1 / n) * (newcombe(*table)[1] - newcombe(*table)[0])
    assert intervals(*table) == pytest.approx(newcombe(*table), abs=tolerance)


@pytest.mark.parametrize("table", [(20, 0, 0, 0), (0, 20, 0, 0), (0, 0, 0, 20)])
def test_difference_of_perfect_scores_has_newcombes_interval(table):
    assert intervals(*table) == pytest.approx(newcombe(*table), abs=1e-12)


def test_equal_answers_leave_room_for_a_difference():
    low, high = intervals(18, 0, 0, 2)
    assert low < 0 < high
