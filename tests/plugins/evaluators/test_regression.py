"""Regression figures against scikit-learn and scipy, on all examples and on resamples."""

import math

import numpy as np
import pytest
from expected import raises
from scipy import stats
from sklearn import metrics

from ftengine.api import Labels
from ftengine.errors import RecipeError
from ftengine_builtins.evaluators.regression import Regression

N = 30


def of(scored, target, value, outputs=("score",)):
    evaluator = Regression()
    evaluator.set_labels("a-task", Labels("regression", outputs))
    return scored(evaluator, [{"target": t, "value": v} for t, v in zip(target, value, strict=True)])


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


@pytest.mark.parametrize(("outputs", "mean"), [(1, 0), (1, 1e6), (3, 0)])
def test_figures_equal_scikit_learns_and_scipys(scored, outputs, mean):
    target, value = numbers(outputs, mean)
    found = of(scored, target.tolist(), value.tolist(), tuple("abc"[:outputs]))
    for rows, values in [(np.arange(N), found.scores), *found.resamples()]:
        assert values == pytest.approx(expected(target[rows], value[rows]), rel=1e-8)


def test_details_give_each_output(scored):
    target, value = numbers(2)
    facts, displays = of(scored, target.tolist(), value.tolist(), ("length", "width")).details()
    for i, row in enumerate(facts["outputs"]):
        assert row["output"] == ("length", "width")[i]
        for name, truth in expected(target[:, [i]], value[:, [i]]).items():
            assert row[name] == pytest.approx(truth)
    headings = ("output", "mean squared error", "mean absolute error", "R²", "Pearson correlation")
    assert displays["Outputs"].columns == headings


def test_without_variation_r2_and_correlation_are_undefined(scored):
    flat = of(scored, [0.1] * N, np.linspace(0, 1, N).tolist()).scores
    assert flat["mse"] > 0
    assert math.isnan(flat["r2"])
    assert math.isnan(flat["pearson"])
    two = of(scored, [[0.1, 1.0], [0.1, 2.0]] * 5, [[0.0, 1.0], [1.0, 2.0]] * 5, ("flat", "exact"))
    flat, exact = two.details()[0]["outputs"]
    assert flat["r2"] is flat["pearson"] is None
    assert exact["r2"] == exact["pearson"] == 1


def test_an_example_is_scored_by_its_squared_error(scored):
    found = of(scored, [[1.0, 2.0]], [[1.0, 4.0]], ("a", "b"))
    assert found.evaluator.score_examples(found.rows).score.tolist() == [-2]


@pytest.mark.parametrize("labels", [None, Labels("single", ("a", "b"))])
def test_without_numbers_it_is_refused(labels):
    with raises(RecipeError, "'regression'", "'a-task'"):
        Regression().set_labels("a-task", labels)
