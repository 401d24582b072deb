"""Regression figures against scikit-learn and scipy, on the plain sums and on every resample."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from ftengine.api import EvaluationContext, Labels
from ftengine.errors import RecipeError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.resampling import poisson_weights
from ftengine_builtins.evaluators.regression import Regression

N, B = 30, 60


def accumulate(target, value, outputs=("score",)):
    accumulator = Accumulator([Regression()], EvaluationContext("some-task", Labels("regression", outputs)), B)
    for index, (t, v) in enumerate(zip(target, value, strict=True)):
        accumulator.update(index, {"target": t, "value": v})
    return accumulator


def numbers(outputs, mean=0.0):
    rng = np.random.default_rng(0)
    target = mean + rng.normal(size=(N, outputs))
    return target, mean + 0.7 * (target - mean) + 0.5 * rng.normal(size=(N, outputs))


def expected(t, v):
    return {
        "mse": metrics.mean_squared_error(t, v),
        "mae": metrics.mean_absolute_error(t, v),
        "r2": metrics.r2_score(t, v),
        "pearson": np.mean([stats.pearsonr(a, b).statistic for a, b in zip(t.T, v.T, strict=True)]),
    }


# Σx² with a mean of 1,000 standard deviations is 10⁶ times the variation left of it: six digits cancel.
@pytest.mark.parametrize(("outputs", "mean", "digits"), [(1, 0, 12), (1, 1000, 6), (3, 0, 12)])
def test_figures_equal_scikit_learns_and_scipys(outputs, mean, digits):
    target, value = numbers(outputs, mean)
    figures = accumulate(target.tolist(), value.tolist(), tuple("abc"[:outputs])).figures()
    weights = np.concatenate([np.ones((N, 1)), poisson_weights(0, range(N), B)], axis=1).astype(int)
    for k, column in enumerate(weights.T):
        rows = np.repeat(np.arange(N), column)
        for name, truth in expected(target[rows], value[rows]).items():
            found = np.append(figures[name].value, figures[name].resampled)[k]
            assert found == pytest.approx(truth, rel=10**-digits, abs=10**-digits)  # R² and r have the scale 1


def test_a_single_output_may_be_a_bare_number():
    target, value = numbers(1)
    bare = accumulate(target.ravel().tolist(), value.ravel().tolist())
    assert bare.results() == accumulate(target.tolist(), value.tolist()).results()
    assert bare.details() == {}


def test_details_give_each_output():
    target, value = numbers(2)
    rows = accumulate(target.tolist(), value.tolist(), ("length", "width")).details()["regression"]["outputs"]
    for i, row in enumerate(rows):
        assert row["output"] == ("length", "width")[i]
        for name, truth in expected(target[:, [i]], value[:, [i]]).items():
            assert row[name] == pytest.approx(truth, rel=1e-12)


def test_without_variation_r2_and_correlation_are_undefined():
    results = accumulate([0.1] * N, np.linspace(0, 1, N).tolist()).results()
    assert results["mse"].value > 0
    for name in ("r2", "pearson"):
        assert math.isnan(results[name].value)
        assert results[name].low is results[name].high is None


def test_without_variation_details_hold_null():
    two = accumulate([[0.1, 1.0], [0.1, 2.0]] * 5, [[0.0, 1.0], [1.0, 2.0]] * 5, ("flat", "exact"))
    flat, exact = two.details()["regression"]["outputs"]
    assert flat["r2"] is flat["pearson"] is None
    assert exact["r2"] == exact["pearson"] == 1


@pytest.mark.parametrize("labels", [None, Labels("single", ("a", "b"))])
def test_without_numbers_it_is_refused(labels):
    with pytest.raises(RecipeError, match=r"'regression' needs numbers .*'some-task' has (no labels|single-label)"):
        Regression().bind(EvaluationContext("some-task", labels))
