"""Figures, intervals and p-values, against statsmodels, scipy and formulas by hand."""

import math

import numpy as np
import pytest
from expected import raises
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from ftengine.api import Difference, Estimate, Evaluator, ExampleScores, Metric
from ftengine.errors import PluginError, RecipeError
from ftengine.evaluation import holm
from ftengine.evaluation.differences import Gap, compare, gap_between
from ftengine.evaluation.figures import measure
from ftengine.evaluation.intervals import percentile_interval, score_interval, subtracted_interval, wilson
from ftengine.evaluation.plan import check_evaluators, check_metrics
from ftengine.evaluation.significance import mcnemar, t_test
from ftengine.evaluation.weights import Weights


class Mean(Evaluator):
    """Mean of x."""

    name = "mean"
    reads = frozenset({"x"})
    metrics = {"mean": Metric("mean", higher_is_better=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"mean": float(weights @ rows["x"] / weights.sum())}


class Share(Mean):
    """Share of ones."""

    name = "share"
    metrics = {"share": Metric("share", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"share": float(weights @ rows["x"] / weights.sum())}


def figure(x, evaluator=Mean, groups=None, resamples=1000, seed=0):
    x = np.asarray(x, dtype=float)
    weights = Weights(np.arange(len(x)) if groups is None else groups, seed, resamples)
    return next(iter(measure(evaluator(), {"x": x}, weights).values()))


def difference(base, tuned, evaluator=Mean, **options):
    both = ({"f": figure(x, evaluator)} for x in (base, tuned))
    return compare(*both, **options)["f"]


def normal(n, seed=0):
    return np.random.default_rng(seed).normal(size=n)


# Weights.


def test_weights_are_poisson_and_independent():
    weights = np.concatenate(list(Weights(np.arange(500), 0, 1000).chunks()))
    observed = np.bincount(weights.ravel(), minlength=9)
    expected = stats.poisson.pmf(range(8), 1) * weights.size
    # The tail from 7 on is taken together, so that every cell expects more than five.
    cells = np.append(observed[:7], observed[7:].sum()), np.append(expected[:7], weights.size - expected[:7].sum())
    assert stats.chisquare(*cells).pvalue > 0.001
    between = np.corrcoef(weights[:, :200].T.astype(float))[np.triu_indices(200, 1)]
    assert np.abs(between).max() * np.sqrt(1000) < stats.norm.isf(0.001 / 2 / 200**2)


def test_duplicates_share_weights_and_slices_have_those_of_the_whole(monkeypatch):
    groups = np.array([7, 3, 7, -2, 3])
    weights = Weights(groups, 5, 50)
    (whole,) = weights.chunks()
    assert weights.groups == 3
    assert (whole[:, 0] == whole[:, 2]).all()
    assert (whole[:, 1] == whole[:, 4]).all()
    mask = np.array([False, True, True, False, True])
    part = weights.under(mask)
    assert (part.groups, len(part)) == (2, 3)
    assert (next(part.chunks()) == whole[:, mask]).all()
    monkeypatch.setattr("ftengine.evaluation.weights.CHUNK", 15)
    monkeypatch.setattr("ftengine.evaluation.weights.KEPT", 0)
    assert (np.concatenate(list(Weights(groups, 5, 50).chunks())) == whole).all()
    assert (np.concatenate(list(Weights(groups, 5, 20).chunks())) == whole[:20]).all()
    assert (np.concatenate(list(Weights(groups, 2**70, 50).chunks())) != whole).any()


# Intervals.


@pytest.mark.parametrize("n", [2, 20, 1000])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_perfect_score_has_wilsons_interval(value, n):
    found = figure(np.full(n, value), Share)
    assert found.interval == pytest.approx(proportion_confint(value * n, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(18, 20), (37, 50), (199, 200)])
def test_a_plain_proportion_has_about_wilsons_interval(right, n):
    low, high = figure(np.arange(n) < right, Share).interval
    expected = proportion_confint(right, n, method="wilson")
    # The effective n is a variance of 1,000 resamples, of excess kurtosis 1 / wrong answers at most: its relative error
    # is below 3·sqrt((2 + 1/wrong) / 1000), a width's half that; dividing by a random total adds 1/n in variance.
    tolerance = 3 * math.sqrt((2 + 1 / (n - right)) / 1000) / 2 + 1 / n
    assert high - low == pytest.approx(expected[1] - expected[0], rel=tolerance)
    assert low <= right / n <= high


def test_copies_of_an_example_do_not_narrow_its_interval():
    once = figure([1.0, 1, 0, 1, 1], Share)
    often = figure(np.repeat([1.0, 1, 0, 1, 1], 100), Share, groups=np.repeat(np.arange(5), 100))
    assert (often.interval, often.n) == (pytest.approx(once.interval), 5)


def test_a_mean_of_many_examples_has_students_interval():
    x = normal(300)
    expected = stats.ttest_1samp(x, 0).confidence_interval()
    assert figure(x, resamples=4000).interval == pytest.approx(tuple(expected), abs=0.01)


def test_the_interval_of_few_examples_is_wider_as_students_is():
    resampled = stats.norm.ppf((np.arange(99_999) + 1) / 100_000)  # what resampling a normal mean gives
    # Resamples have the standard deviation with divisor n; Student's interval uses n - 1.
    expected = stats.t.ppf(0.975, 9) * np.sqrt(10 / 9)
    spacing = 1 / 100_000 / stats.norm.pdf(expected)  # between neighbouring order statistics there
    assert percentile_interval(resampled, 10) == pytest.approx((-expected, expected), abs=spacing)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_there_is_no_interval_where_the_tails_cannot_be_resolved(n):
    assert percentile_interval(np.arange(1000.0), n) == (None, None)


def test_undefined_resamples_are_left_out_and_undefined_figures_have_no_interval():
    known = np.arange(1.0, 1000.0)
    assert percentile_interval(np.append(known, np.full(500, np.nan)), 100) == percentile_interval(known, 100)
    found = figure(np.append(normal(50), np.nan))
    assert math.isnan(found.value)
    assert found.interval == score_interval(math.nan, known, 9, 9) == (None, None)
    assert difference(normal(51), np.append(normal(50), np.nan)).low is None


@pytest.mark.parametrize(("a", "n", "b", "m"), [(56, 70, 48, 80), (9, 10, 3, 10), (10, 10, 0, 20)])
def test_a_gap_of_proportions_has_newcombes_interval(a, n, b, m):
    """Newcombe 1998, method 10; statsmodels has it."""
    gap = Gap(a / n - b / m, b / m, a / n, ((m, math.inf), (n, math.inf)), None)
    assert gap.interval() == pytest.approx(confint_proportions_2indep(a, n, b, m, method="newcomb"), abs=1e-12)
    low, high = gap.interval(1 - gap.test().p)
    assert min(abs(low), abs(high)) < 1e-5


def test_a_paired_difference_has_newcombes_interval():
    """His first example (1998, paired data), where the correlation is negative and needs no correction."""
    both, tuned, base, neither = 36, 12, 2, 0
    n = 50
    margins = (both + tuned) * (base + neither) * (both + base) * (tuned + neither)
    r = (both * neither - tuned * base) / math.sqrt(margins)
    sides = (both + base) / n, (both + tuned) / n
    found = subtracted_interval(*sides, wilson(sides[0], n), wilson(sides[1], n), r)
    assert found == pytest.approx((0.0569, 0.3404), abs=5e-5)
    x = np.repeat([[1.0, 1], [0, 1], [1, 0], [0, 0]], [both, tuned, base, neither], axis=0).T
    measured = difference(x[0], x[1], Share)
    tolerance = (4 / math.sqrt(1000) + 1 / n) * (found[1] - found[0])  # of resampled variances and a correlation
    assert (measured.low, measured.high) == pytest.approx(found, abs=tolerance)


def test_a_gap_of_means_is_welchs_t_test():
    x, y = normal(100) * 0.3 + 0.08, normal(200, 1) * 0.3
    gap = gap_between(figure(y, resamples=4000, seed=1), figure(x, resamples=4000))
    test = stats.ttest_ind(x, y, equal_var=False)
    assert gap.test() == (pytest.approx(test.pvalue, rel=0.25), "welch")
    assert gap.interval() == pytest.approx(tuple(test.confidence_interval()), abs=0.006)


# Differences.


def test_lower_may_be_better_and_neither_may_be():
    class Loss(Mean):
        metrics = {"mean": Metric("loss", higher_is_better=False)}  # noqa: RUF012

    class Neither(Mean):
        metrics = {"mean": Metric("length")}  # noqa: RUF012

    assert difference(normal(50), normal(50) - 1, Loss).better is True
    assert difference(normal(50), normal(50) - 1 + normal(50, 3) / 9, Neither).better is None


def test_equal_models_do_not_differ_and_one_example_says_nothing():
    x = normal(100) * 1e6
    assert difference(x, x) == Difference(0.0, 0.0, 0.0, 1.0, None, test="t")
    assert difference([3.0], [4.0]) == Difference(1.0, None, None, None, None)
    assert figure([3.0]).estimate == Estimate(3.0, None, None, 1)


# Tests.


def test_p_is_students_and_has_no_least_value():
    x = normal(200) + 0.15
    weights = Weights(np.arange(200), 0, 4000)
    resampled = weights.resample(lambda w: w @ x / w.sum(axis=1))
    assert t_test(x.mean(), resampled, 200) == (pytest.approx(stats.ttest_1samp(x, 0).pvalue, rel=0.3), "t")
    assert t_test(5 + x.mean(), resampled + 5, 200).p < 1e-100
    assert t_test(-1.0, np.full(100, -1.0), 50) == (2.0**-49, "sign")
    assert t_test(0.0, np.zeros(100), 50) == (1, "t")
    assert t_test(1.0, np.ones(100), 1) is None


def test_holm_equals_statsmodels():
    p_values = np.random.default_rng(0).random(30) ** 4
    adjusted = holm(dict(enumerate(p_values)))
    assert list(adjusted) == list(range(30))
    assert list(adjusted.values()) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({}) == {}


def test_mcnemar_counts_duplicates_once_and_tests_what_differs():
    right = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, np.nan]])
    sides = [ExampleScores(side, side) for side in right]
    found = mcnemar(*sides, Weights(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 10]), 0, 0))
    assert found.pop("p") == pytest.approx(stats.binomtest(1, 6).pvalue)
    assert found == {"both": 3, "only_base": 1, "only_tuned": 5, "neither": 1}
    unknown = ExampleScores(right[0], np.full(12, np.nan))
    assert mcnemar(unknown, unknown, Weights(np.arange(12), 0, 0)) is None


# Rows in groups.


def patients(groups=20, rows=8, seed=0, spread=1.0):
    """Return the group of each row, and differences of two models that are the same within a group but for noise."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rows)
    return group, spread * rng.normal(size=groups)[group] + 0.3 * rng.normal(size=len(group))


def grouped(x, group, evaluator=Mean, resamples=1000):
    weights = Weights(group, 0, resamples, duplicates=np.arange(len(x)))
    return next(iter(measure(evaluator(), {"x": np.asarray(x, dtype=float)}, weights).values()))


def test_a_difference_of_rows_in_groups_is_tested_as_that_of_their_means():
    """Groups of one size: the mean of all rows is that of the groups, tested by Student's t with groups less one."""
    group, shift = patients(seed=3)
    shift = shift - shift.mean() + 0.4
    test = stats.ttest_1samp(shift.reshape(20, -1).mean(axis=1), 0)
    base, tuned = (grouped(x, group, resamples=4000) for x in (np.zeros(160), shift))
    found = compare({"f": base}, {"f": tuned})["f"]
    assert (tuned.n, tuned.rows, tuned.estimate.rows) == (20, 160, 160)
    assert found.p == pytest.approx(test.pvalue, rel=0.15)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()), abs=0.06)
    assert found.better is None
    error = test.confidence_interval().high - shift.mean()
    assert found.detectable == pytest.approx(error * (1 + stats.t.ppf(0.8, 19) / stats.t.ppf(0.975, 19)), rel=0.1)
    alone = difference(np.zeros(160), shift)  # each row for itself is sure of it
    assert alone.better is True
    assert alone.detectable < 0.6 * found.detectable


def test_a_gap_within_groups_is_tested_as_paired():
    """Half of each patient's rows on either side: the paired t-test of 50 patients, not Welch's of 50 against 50."""
    group, rng = np.repeat(np.arange(50), 8), np.random.default_rng(4)
    kind = np.tile(np.arange(8) % 2, 50)
    x = math.sqrt(0.8) * rng.normal(size=50)[group] + math.sqrt(0.2) * rng.normal(size=400) + 0.15 * kind
    weights = Weights(group, 0, 4000, duplicates=np.arange(400))
    sides = [measure(Mean(), {"x": x[kind == k]}, weights.under(kind == k))["mean"] for k in (0, 1)]
    gap, test = (
        gap_between(*sides, overlap=True),
        stats.ttest_rel(*(x[kind == k].reshape(50, 4).mean(axis=1) for k in (1, 0))),
    )
    assert 0.0005 < test.pvalue < 0.05
    assert gap.test() == (pytest.approx(test.pvalue, rel=0.25), "t")
    assert gap.interval() == pytest.approx(tuple(test.confidence_interval()), abs=0.01)
    assert gap_between(*sides).test().p > 0.2


def test_a_proportion_of_rows_in_groups_has_wilsons_interval_at_its_effective_trials():
    """Rows that are all alike within a group are worth one trial; Student's t with groups less one for the normal."""
    right = np.repeat(np.arange(20) < 15, 8)
    found = grouped(right, np.repeat(np.arange(20), 8), Share, resamples=4000)
    # 15 of 20 groups, by the variance with divisor 19; and solved for p: |p - 0.75| = t · sqrt(p (1 - p) / 19).
    t, n = stats.t.ppf(0.975, 19), 19
    middle, half = 0.75 + t**2 / (2 * n), t * math.sqrt(0.75 * 0.25 / n + t**2 / (4 * n**2))
    expected = (middle - half) / (1 + t**2 / n), (middle + half) / (1 + t**2 / n)
    assert found.interval == pytest.approx(expected, abs=0.02)
    perfect = grouped(np.ones(160), np.repeat(np.arange(20), 8), Share)  # nothing varies: 20 trials
    assert perfect.interval[0] == pytest.approx(1 / (1 + t**2 / 20))


# What is refused.


def test_evaluators_that_do_not_suit_are_named():
    with raises(RecipeError, "'mean'", "'x'", "a-task"):
        check_evaluators([Mean()], "a-task", {"tokens", "loss"})
    check_evaluators([Mean(), Share()], "a-task", {"x"})

    class Again(Mean):
        name = "again"

    with raises(RecipeError, "'mean'", "again"):
        check_metrics([Mean(), Again()])

    class Undeclared(Mean):
        def score(self, rows, weights):
            return {"median": 0.0}

    with raises(PluginError, "'mean'", "['median']"):
        figure([1.0], Undeclared)
