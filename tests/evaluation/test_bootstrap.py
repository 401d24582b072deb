"""Streaming sums, their figures, and tuned against base."""

import json
import math
import pickle

import numpy as np
import pytest

from ftengine.api import Difference, EvaluationContext, Evaluator, Metric
from ftengine.errors import PluginError, RecipeError
from ftengine.evaluation.bootstrap import BATCH, Accumulator
from ftengine.evaluation.difference import compare, to_json
from ftengine.evaluation.requirements import check_evaluators
from ftengine.evaluation.resampling import poisson_weights

CONTEXT = EvaluationContext("some-task")
B = 200


class Mean(Evaluator):
    """Mean of x."""

    name = "mean"
    reads = frozenset({"x"})
    higher_is_better = {"mean": True}  # noqa: RUF012

    def statistics(self, prediction):
        return prediction["x"], 1

    def metrics(self, sums):
        return {"mean": sums[..., 0] / sums[..., 1]}


class Share(Mean):
    """Share of x, as a proportion, with details."""

    name = "share"
    higher_is_better = {"share": True}  # noqa: RUF012

    def metrics(self, sums):
        return {"share": sums[..., 0] / sums[..., 1], "undirected": sums[..., 1]}

    def trials(self, sums):
        return {"share": sums[1]}

    def counts(self, prediction):
        return [("seen", prediction["x"])]

    def details(self, sums, counts):
        return {"ones": counts["seen", 1]}


def accumulate(values, evaluators=None, *, indices=None, resamples=B, seed=0):
    accumulator = Accumulator(evaluators or [Mean()], CONTEXT, resamples, seed)
    for index, value in zip(indices if indices is not None else range(len(values)), values, strict=True):
        accumulator.update(int(index), {"x": value})
    return accumulator


def normal(n, seed=0):
    return np.random.default_rng(seed).normal(size=n)


@pytest.mark.parametrize("n", [1, BATCH - 1, BATCH, 2 * BATCH + 17])
def test_sums_are_plain_and_weighted(n):
    x = normal(n)
    sums = accumulate(x).sums()["mean"]
    rows = np.stack([x, np.ones(n)], axis=1)
    assert sums.shape == (B + 1, 2)
    np.testing.assert_allclose(sums[0], rows.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums[1:], poisson_weights(0, range(n), B).T @ rows, rtol=0, atol=1e-12 * n)


def test_order_and_ranks_do_not_matter():
    x = normal(700)
    whole = accumulate(x)
    order = np.random.default_rng(1).permutation(700)
    ranks = [accumulate(x[part], indices=part) for part in (order[:100], order[100:101], order[101:])]
    merged = Accumulator([Mean()], CONTEXT, B, 0)  # a rank that got nothing
    for rank in ranks:
        merged.merge(rank)
    assert merged.examples == 700
    assert (merged.weight_totals() == whole.weight_totals()).all()
    np.testing.assert_allclose(merged.sums()["mean"], whole.sums()["mean"], rtol=0, atol=1e-12 * 700)
    assert ranks[1].examples == 1  # what was merged stays as it was


def test_an_accumulator_travels_between_processes():
    sent = accumulate(normal(30), [Share()])
    received = pickle.loads(pickle.dumps(sent))
    assert received.results() == sent.results()
    assert received.details() == sent.details()


def test_memory_does_not_grow_with_examples():
    def held(n):
        accumulator = accumulate(np.zeros(n))
        return len(pickle.dumps(accumulator))

    assert held(4 * BATCH) == held(BATCH)


def test_metrics_of_several_evaluators_come_with_intervals():
    x = np.tile([0, 1, 1, 1], 25)
    accumulator = accumulate(x, [Mean(), Share()], resamples=1000)
    results = accumulator.results()
    assert results["mean"].value == results["share"].value == 0.75
    assert {m.n for m in results.values()} == {100}
    assert results["mean"].low < 0.75 < results["mean"].high
    # The two know the same, so they differ by the form of the interval alone.
    assert results["share"].low == pytest.approx(results["mean"].low, abs=0.03)
    assert accumulator.details() == {"share": {"ones": 75}}


def test_counts_of_ranks_add_up():
    one, other = accumulate([0, 1], [Share()]), accumulate([1, 1], [Share()], indices=[2, 3])
    one.merge(other)
    assert one.details() == {"share": {"ones": 3}}


def test_without_examples_there_are_no_figures():
    empty = accumulate([])
    assert empty.examples == 0
    assert empty.results() == {}
    assert empty.details() == {}
    assert compare(empty, accumulate([])) == {}


def test_one_example_has_no_interval():
    assert accumulate([3.0]).results()["mean"] == Metric(3.0, None, None, 1)
    difference = compare(accumulate([3.0]), accumulate([4.0]))["mean"]
    assert difference == Difference(1.0, None, None, None, None)


def test_an_undefined_figure_is_nan_without_interval():
    x = normal(50)
    x[7] = math.nan
    metric = accumulate(x).results()["mean"]
    assert math.isnan(metric.value)
    assert metric.low is metric.high is None
    difference = compare(accumulate(normal(50)), accumulate(x))["mean"]
    assert math.isnan(difference.value)
    assert (difference.low, difference.high, difference.p, difference.better) == (None,) * 4


@pytest.mark.parametrize(("shift", "better"), [(0.1, True), (-0.1, False), (0.0, None)])
def test_pairing_finds_a_small_shift_in_noisy_examples(shift, better):
    x = normal(100)
    noise = normal(100, seed=1) * 0.05
    base, tuned = accumulate(x, resamples=1000), accumulate(x + shift + noise - noise.mean(), resamples=1000)
    difference = compare(base, tuned)["mean"]
    assert difference.value == pytest.approx(shift, abs=1e-12)
    assert difference.better is better
    assert difference.low < difference.value < difference.high
    # The interval is that of the noise, of which the examples' own spread is no part: 1.98 · 0.05 / 10.
    assert difference.high - difference.low < 0.1 * (base.results()["mean"].high - base.results()["mean"].low)


def test_lower_may_be_better():
    class Loss(Mean):
        """Lower is better."""

        higher_is_better = {"mean": False}  # noqa: RUF012

    x = normal(50)
    assert compare(accumulate(x, [Loss()]), accumulate(x - 1, [Loss()]))["mean"].better is True


def test_a_metric_without_direction_is_never_better():
    x = np.ones(50, dtype=int)
    assert compare(accumulate(x, [Share()]), accumulate(x, [Share()]))["undirected"].better is None


def test_an_exact_p_value_decides_in_the_bootstraps_place():
    """Five of a hundred differ, all in one direction: the bootstrap alone calls that beyond chance."""
    right = np.ones(100)
    base, tuned = accumulate(np.where(np.arange(100) < 5, 0, right), [Share()]), accumulate(right, [Share()])
    assert compare(base, tuned)["share"].better is True
    exact = compare(base, tuned, {"share": 0.0625})["share"]
    assert (exact.p, exact.better) == (0.0625, None)
    assert (exact.low, exact.high) == (compare(base, tuned)["share"].low, compare(base, tuned)["share"].high)


def test_equal_models_do_not_differ_whatever_the_order():
    x = normal(1000) * 1e6
    order = np.random.default_rng(2).permutation(1000)
    difference = compare(accumulate(x), accumulate(x[order], indices=order))["mean"]
    assert difference == Difference(0.0, 0.0, 0.0, 1.0, None)


def test_perfect_scores_keep_an_honest_interval():
    base, tuned = (accumulate(np.full(20, x), [Share()], resamples=1000) for x in (0, 1))
    assert tuned.results()["share"].low == pytest.approx(0.839, abs=5e-4)  # Wilson's for 20 of 20
    difference = compare(base, tuned)["share"]
    assert difference.high == difference.value == 1
    assert 0.7 < difference.low < 0.839
    assert difference.better is True


def test_only_the_same_examples_can_be_compared():
    x = normal(20)
    with pytest.raises(ValueError, match="not evaluated on the same examples"):
        compare(accumulate(x), accumulate(x, indices=range(1, 21)))
    with pytest.raises(ValueError, match=r"20 examples.*19"):
        compare(accumulate(x), accumulate(x[:19]))
    with pytest.raises(ValueError, match="resamples, seed, evaluators"):
        compare(accumulate(x), accumulate(x, seed=1))
    with pytest.raises(ValueError, match="resamples, seed, evaluators"):
        accumulate(x).merge(accumulate(x, resamples=B + 1))


def test_an_evaluator_that_lacks_a_key_is_named():
    with pytest.raises(RecipeError, match=r"'mean' reads 'x', which task 'some-task' .*predicts 'loss', 'tokens'"):
        Accumulator([Mean()], CONTEXT, B, 0, predicts={"tokens", "loss"})
    with pytest.raises(RecipeError, match="predicts nothing"):
        check_evaluators([Mean()], "some-task", frozenset())
    check_evaluators([Mean(), Share()], "some-task", {"x", "y"})


def test_two_evaluators_cannot_report_one_metric():
    class Again(Mean):
        """Reports what `Mean` does."""

        name = "again"

    class Undeclared(Mean):
        """Reports what `Mean` does, and does not say so before."""

        name = "undeclared"
        higher_is_better = {}  # noqa: RUF012

    with pytest.raises(RecipeError, match="'mean' and 'again' both report 'mean'"):
        accumulate([1.0], [Mean(), Again()])
    with pytest.raises(RecipeError, match="'mean' and 'undeclared' both report 'mean'"):
        accumulate([1.0], [Mean(), Undeclared()]).results()


def test_statistics_of_changing_length_are_refused():
    class Ragged(Mean):
        """As many statistics as x says."""

        name = "ragged"

        def statistics(self, prediction):
            return [1.0] * prediction["x"]

    with pytest.raises(PluginError, match="'ragged' returned 3 statistics for an example and 2 for another"):
        accumulate([2, 2, 3], [Ragged()])


def test_figures_become_json():
    assert to_json(Metric(math.nan, None, math.inf, 3)) == {"value": None, "low": None, "high": None, "n": 3}
    difference = Difference(-0.5, -0.75, -0.25, 0.01, True)
    assert to_json(difference) == {
        "value": -0.5,
        "low": -0.75,
        "high": -0.25,
        "p": 0.01,
        "better": True,
        "detectable": None,
    }
    json.dumps(to_json(difference), allow_nan=False)


def test_copies_of_an_example_do_not_narrow_its_interval():
    """Three different examples, all right, say the same whether each stands there once or a hundred times."""
    from ftengine.api import Labels
    from ftengine_builtins.evaluators.classification import Classification

    context = EvaluationContext("text-classification", Labels("single", ("a", "b")))
    widths = []
    for copies in (1, 100):
        result = Accumulator([Classification()], context, resamples=200, distinct=3)
        for index in range(3):
            for _ in range(copies):
                result.update(index, {"label": index % 2, "predicted": index % 2})
        accuracy = result.results()["accuracy"]
        widths.append((accuracy.low, accuracy.high, accuracy.n))
    assert widths[0] == widths[1]
