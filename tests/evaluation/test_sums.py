"""Sums that a run keeps: what they say after being read back, and what cannot be read back."""

import numpy as np
import pytest

from ftengine.api import EvaluationContext, Evaluator
from ftengine.errors import RunError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine.evaluation.results import SUMS, read_sums, save_sums
from ftengine.run import RunDirectory

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


def accumulate(values, distinct=None):
    accumulator = Accumulator([Mean(), Square()], CONTEXT, 200, seed=3, distinct=distinct)
    for index, value in enumerate(values):
        accumulator.update(index, {"x": value})
    return accumulator


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@pytest.mark.parametrize("distinct", [None, 40])
def test_figures_and_comparisons_are_the_same_after_reading_back(run, distinct):
    rng = np.random.default_rng(0)
    first, second = (accumulate(rng.normal(size=50) + shift, distinct) for shift in (0.0, 0.3))
    save_sums(run, second)
    again = read_sums(run, [Mean(), Square()], CONTEXT, seed=3, distinct=distinct)
    assert again.results() == second.results()
    assert compare(first, again) == compare(first, second)
    assert [path.name for path in run.path.iterdir()] == [SUMS]


def test_a_run_without_held_out_data_keeps_nothing_to_compare(run):
    save_sums(run, None)
    with pytest.raises(RunError, match="does not belong to this run"):
        read_sums(run, [Mean(), Square()], CONTEXT, seed=3, distinct=1)


def test_sums_of_other_evaluators_are_refused(run):
    save_sums(run, accumulate([1.0, 2.0]))
    with pytest.raises(RunError, match=r"sums of evaluators \['mean', 'square'\], expected \['mean'\]"):
        read_sums(run, [Mean()], CONTEXT, seed=3, distinct=2)


def test_missing_sums_are_named(run):
    with pytest.raises(RunError, match=rf"{SUMS}' is missing"):
        read_sums(run, [Mean()], CONTEXT, seed=3, distinct=2)
