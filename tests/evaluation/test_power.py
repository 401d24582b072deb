"""The detectable difference is found in about four of five sets; memory stays where it is with more examples."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from ftengine.api import EvaluationContext, Evaluator
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine.evaluation.judgements import Judgements


class Mean(Evaluator):
    """Mean of x."""

    name = "mean"
    higher_is_better = {"mean": True}  # noqa: RUF012

    def statistics(self, prediction):
        return prediction["x"], 1

    def metrics(self, sums):
        return {"mean": sums[..., 0] / sums[..., 1]}


def accumulate(values, resamples=400):
    accumulator = Accumulator([Mean()], EvaluationContext("task"), resamples)
    for index, value in enumerate(values):
        accumulator.update(index, {"x": value})
    return accumulator


def difference(n, seed, shift):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=n)
    return compare(accumulate(base), accumulate(base + rng.normal(shift, 0.5, n)))["mean"]


def test_a_detectable_difference_is_the_one_of_the_t_tests_power():
    """Against the noncentral t distribution: power at the detectable difference is 80 %."""
    n = 60
    shift = np.mean([difference(n, seed, 0.0).detectable for seed in range(20)])
    freedom, noncentrality = n - 1, shift / (0.5 / np.sqrt(n))
    power = stats.nct.sf(stats.t.isf(0.025, freedom), freedom, noncentrality)
    assert power == pytest.approx(0.8, abs=0.04)


def test_a_detectable_difference_is_found_in_four_of_five_sets():
    n, runs = 60, 150
    shift = np.mean([difference(n, 10**6 + seed, 0.0).detectable for seed in range(20)])
    found = sum(difference(n, seed, shift).better is True for seed in range(runs))
    assert stats.binom.ppf(0.001, runs, 0.77) <= found <= stats.binom.isf(0.001, runs, 0.84)


def test_nothing_is_said_to_be_detectable_where_nothing_differs():
    same = accumulate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert compare(same, same)["mean"].detectable is None


def test_memory_does_not_grow_with_the_examples_but_for_five_bytes_of_judgement():
    def peak(n):
        tracemalloc.start()
        accumulate(np.broadcast_to(1.0, n), resamples=200)
        judged = Judgements.blank(n)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top, judged.scores.nbytes + judged.right.nbytes

    peak(10_000)  # fills the store of weights, which keeps those of 8,192 examples, whatever ran before
    (few, _), (many, kept) = peak(10_000), peak(60_000)
    assert kept == 5 * 60_000
    # That store's hash table (0.6 MB) is laid out anew now and then, beside the old one. A float an example would
    # be 1.6 MB in a list, a row of statistics 7 MB.
    assert many - few < kept + 1_200_000
