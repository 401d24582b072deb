"""Weights, percentile intervals and p-values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ftengine.evaluation import resampling
from ftengine.evaluation.resampling import p_value, percentile_interval, poisson_weights, t_p_value


def test_weights_are_poisson_with_mean_one():
    weights = poisson_weights(0, range(500), 1000)
    observed = np.bincount(weights.astype(int).ravel(), minlength=9)
    expected = stats.poisson.pmf(range(8), 1) * weights.size
    # The tail from 7 on is taken together, so that every cell expects more than five.
    cells = np.append(observed[:7], observed[7:].sum()), np.append(expected[:7], weights.size - expected[:7].sum())
    assert stats.chisquare(*cells).pvalue > 0.001


def test_weights_of_examples_and_resamples_are_uncorrelated():
    weights = poisson_weights(3, range(200), 400) - 1
    bound = stats.norm.isf(0.001 / 2 / 200**2)  # the largest of 200² correlations, each about N(0, 1/400)
    between = np.corrcoef(weights)[np.triu_indices(200, 1)]
    assert np.abs(between).max() * np.sqrt(400) < bound
    assert abs(between.mean()) * np.sqrt(400 * len(between)) < stats.norm.isf(0.0005)


def test_a_weight_depends_on_seed_and_index_alone():
    together = poisson_weights(7, [5, 0, 123_456_789_012], 100)
    assert (poisson_weights(7, [123_456_789_012], 100)[0] == together[2]).all()
    assert (poisson_weights(7, [0, 5], 100) == together[[1, 0]]).all()
    assert (poisson_weights(8, [5], 100)[0] != together[0]).any()


def test_fewer_resamples_are_a_prefix_of_more():
    assert (poisson_weights(1, [4, 9], 1000)[:, :99] == poisson_weights(1, [4, 9], 99)).all()


def test_seeds_have_no_upper_limit():
    assert poisson_weights(2**70 + 1, [0], 8).shape == (1, 8)


def test_weights_stay_the_same_from_version_to_version():
    # Runs that are compared later must have been weighed alike, so these numbers may never change.
    assert poisson_weights(0, [0, 1], 12).astype(int).tolist() == [
        [2, 0, 1, 0, 2, 1, 0, 0, 0, 0, 1, 0],
        [2, 3, 3, 2, 0, 0, 0, 2, 0, 0, 0, 1],
    ]


def test_an_examples_weights_are_drawn_once_for_all_that_ask(monkeypatch):
    drawn = []
    philox = np.random.Philox

    def counting(key):
        drawn.append(key)
        return philox(key=key)

    monkeypatch.setattr(np.random, "Philox", counting)
    resampling._weights_of.cache_clear()
    whole = poisson_weights(11, range(50), 100)
    part = poisson_weights(11, range(10, 20), 100)
    assert len(drawn) == 50
    part *= 0  # what is given away is the caller's
    assert (poisson_weights(11, range(10, 20), 100) == whole[10:20]).all()


def test_interval_of_many_examples_is_the_plain_percentile_interval():
    resampled = np.random.default_rng(0).permutation(np.arange(1.0, 1001.0))
    assert percentile_interval(resampled, 10**9) == (25, 976)


def test_interval_of_few_examples_is_wider_as_students_is():
    resampled = stats.norm.ppf((np.arange(99_999) + 1) / 100_000)  # what resampling a normal mean gives
    low, high = percentile_interval(resampled, 10)
    # Resamples have the standard deviation with divisor n; Student's interval uses n - 1.
    expected = stats.t.ppf(0.975, 9) * np.sqrt(10 / 9)
    spacing = 1 / 100_000 / stats.norm.pdf(expected)  # between neighbouring order statistics there
    assert high == pytest.approx(expected, abs=spacing)
    assert low == pytest.approx(-expected, abs=spacing)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_interval_is_unknown_where_the_tails_cannot_be_resolved(n):
    assert percentile_interval(np.arange(1000.0), n) == (None, None)


def test_resamples_without_a_value_are_left_out():
    known = np.arange(1.0, 1000.0)
    with_gaps = np.concatenate([known, np.full(500, np.nan)])
    assert percentile_interval(with_gaps, 100) == percentile_interval(known, 100)
    assert p_value(with_gaps - 10, 100) == p_value(known - 10, 100)
    assert percentile_interval(np.full(1000, np.nan), 100) == (None, None)
    assert p_value(np.full(1000, np.nan), 100) is None


@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=100, max_size=400),
    st.integers(6, 1000),
    st.integers(-30, 30),
)
def test_interval_excludes_zero_exactly_where_p_is_at_most_five_percent(steps, n, shift):
    resampled = np.cumsum(steps) / 10 + shift
    low, high = percentile_interval(resampled, n)
    if low is not None:
        assert (low > 0 or high < 0) == (p_value(resampled, n) <= 0.05)


def test_p_is_never_zero_and_never_above_one():
    assert 0 < p_value(np.ones(1000), 10**9) == pytest.approx(2 / 1001)
    assert p_value(np.zeros(1000), 50) == 1
    assert p_value(np.ones(1000), 1) is None


def test_the_t_p_value_is_students_and_has_no_least_value():
    x = np.random.default_rng(0).normal(0.3, 1, 200)
    weights = poisson_weights(0, range(200), 4000)
    resampled = weights.T @ x / weights.sum(axis=0)
    assert t_p_value(x.mean(), resampled, 200) == pytest.approx(stats.ttest_1samp(x, 0).pvalue, rel=0.3)
    assert t_p_value(5 + x.mean(), resampled + 5, 200) < 1e-100
    assert t_p_value(0.0, np.zeros(100), 50) == 1
    assert t_p_value(-1.0, np.full(100, -1.0), 50) == 2.0**-49
    assert t_p_value(1.0, np.ones(100), 1) is t_p_value(1.0, np.full(100, np.nan), 50) is None
