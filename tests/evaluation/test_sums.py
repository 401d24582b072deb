"""Sums that a run keeps: what they say after being read back, and what cannot be read back."""

import numpy as np
import pytest

from ftengine.api import EvaluationContext, Evaluator
from ftengine.errors import RunError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine.evaluation.examination import Outcome
from ftengine.evaluation.measurement import Measured
from ftengine.evaluation.results import SUMS, read_sums, save_sums
from ftengine.evaluation.sums import ANSWERS, PREDICTIONS, Sums
from ftengine.run.directory import RunDirectory

CONTEXT = EvaluationContext("some-task")


class Mean(Evaluator):
    """Mean of x."""

    name = "mean"
    higher_is_better = {"mean": True}  # noqa: RUF012

    def statistics(self, prediction):
        return prediction["x"], 1

    def metrics(self, sums):
        return {"mean": sums[..., 0] / sums[..., 1]}


class Square(Mean):
    """Mean of x²."""

    name = "square"
    higher_is_better = {"mean_square": False}  # noqa: RUF012

    def statistics(self, prediction):
        return prediction["x"] ** 2, prediction["x"], 1

    def metrics(self, sums):
        return {"mean_square": sums[..., 0] / sums[..., 2]}


def accumulate(values, distinct=None, start=0):
    accumulator = Accumulator([Mean(), Square()], CONTEXT, 200, seed=3, distinct=distinct)
    for index, value in enumerate(values, start):
        accumulator.update(index, {"x": value})
    return Sums({PREDICTIONS: accumulator})


def keep(run, base, tuned):
    save_sums(run, *(Measured(held_out=None if sums is None else Outcome(sums)) for sums in (base, tuned)))


def read(run, evaluators=(Mean, Square), **options):
    return read_sums(run, [evaluator() for evaluator in evaluators], CONTEXT, seed=3, **options)


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@pytest.mark.parametrize("distinct", [None, 40])
def test_figures_and_comparisons_are_the_same_after_reading_back(run, distinct):
    rng = np.random.default_rng(0)
    first, second = (accumulate(rng.normal(size=50) + shift, distinct) for shift in (0.0, 0.3))
    keep(run, first, second)
    base, tuned = read(run, which="base"), read(run)
    assert (base.results(), tuned.results()) == (first.results(), second.results())
    assert compare(base, tuned) == compare(first, second)
    assert [path.name for path in run.path.iterdir()] == [SUMS]


def test_sums_of_two_folds_are_those_of_all_examples():
    values = np.random.default_rng(0).normal(size=60)
    first, second = accumulate(values[:25], distinct=20), accumulate(values[25:], distinct=35, start=25)
    first.merge(second, apart=True)
    whole = accumulate(values, distinct=55).results()
    for name, metric in first.results().items():
        assert metric.n == 55
        assert (metric.value, metric.low) == pytest.approx((whole[name].value, whole[name].low))


def test_a_run_without_held_out_data_keeps_nothing_to_compare(run):
    keep(run, None, None)
    with pytest.raises(RunError, match="does not belong to this run"):
        read(run)


def test_sums_of_other_evaluators_are_refused(run):
    keep(run, None, accumulate([1.0, 2.0]))
    with pytest.raises(RunError, match=r"sums of evaluators \['mean', 'square'\], expected \['mean'\]"):
        read(run, [Mean])


def test_missing_sums_are_named(run):
    with pytest.raises(RunError, match=rf"{SUMS}' is missing"):
        read(run)


def test_the_pass_over_all_examples_comes_first_after_reading_back(run):
    both = [Accumulator([kind()], CONTEXT, 50, seed=3) for kind in (Mean, Square)]
    for part, examples in zip(both, (9, 4), strict=True):
        for index in range(examples):
            part.update(index, {"x": index})
    sums = Sums({PREDICTIONS: both[0], ANSWERS: both[1]})
    keep(run, sums, sums)
    assert list(read(run).parts) == [PREDICTIONS, ANSWERS]
    assert [(name, metric.n) for name, metric in read(run).results().items()] == [("mean", 9), ("mean_square", 4)]
