"""How often the 95 % intervals of rankings and calibration hold the truth.

Four classes, 200 examples; logits are twice too sharp for the labels that are drawn.
"""

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from ftengine.api import Labels
from ftengine.evaluation.differences import beyond_baseline, compare
from ftengine.evaluation.figures import measure
from ftengine.evaluation.weights import Weights
from ftengine_builtins.evaluators.calibration import Calibration
from ftengine_builtins.evaluators.classification import Classification
from ftengine_builtins.evaluators.regression import Regression

MEASURED = {"roc_auc": 0.998, "brier": 0.957, "nll": 0.962, "overconfidence": 0.953}
"""Share of 600 sets (400 resamples each). ROC AUC is the mean over four curves, which varies less than a proportion of
200 trials. `overconfidence` was 0.955 to 0.965 with logits 1, 1.15, 2 and 4 times too sharp and 100 or 400 examples.
What was tried for the calibration errors missed 0.93 to 0.97 somewhere there: percentiles 0.84 to 0.93, with the noise
taken out twice 0.95 to 1, moved onto the value 0.87 to 0.98."""

TRUTH = {"roc_auc": 0.8962, "brier": 0.4617, "nll": 0.9299, "overconfidence": 0.1410}
"""Figures of 400,000 examples."""


def figures(logits, label, seed=0):
    """Return the figures of both evaluators from logits (n, classes) and label ids (n,), with 400 resamples."""
    scores = softmax(logits, axis=1)
    rows = {"label": label, "predicted": logits.argmax(axis=1), "scores": scores, "logits": logits}
    weights, found = Weights(np.arange(len(label)), seed, 400), {}
    for evaluator in (Classification(), Calibration()):
        evaluator.set_labels("a-task", Labels("single", tuple(map(str, range(logits.shape[1])))))
        found |= measure(evaluator, rows, weights)
    return found


def drawn(seed, n=200):
    rng = np.random.default_rng([n, seed])
    logits = rng.normal(0, 2, (n, 4))
    return figures(2 * logits, (logits + rng.gumbel(size=(n, 4))).argmax(axis=1), seed)


def test_intervals_hold_the_truth_as_often_as_measured():
    held = dict.fromkeys(MEASURED, 0)
    for seed in range(1, 61):
        found = drawn(seed)
        for name in held:
            low, high = found[name].interval
            held[name] += low <= TRUTH[name] <= high
    for name, count in held.items():
        assert count >= stats.binom.ppf(0.001, 60, MEASURED[name]), name


def test_the_difference_of_a_model_from_itself_has_no_width_and_equal_figures_alone_prove_nothing():
    one, other = drawn(1), drawn(1)
    found = compare(one, other, same=True)
    for name in ("accuracy", "roc_auc", "macro_f1", "brier", "overconfidence"):
        assert (found[name].value, found[name].low, found[name].high) == (0, 0, 0), name
    assert found["ece"].low is None
    assert compare(one, other)["roc_auc"].low < 0 < compare(one, other)["roc_auc"].high


def beyond(evaluator, labels, rows):
    """Return how much better a model is than the constant answer, by metric."""
    evaluator.set_labels("a-task", labels)
    weights = Weights(np.arange(len(next(iter(rows.values())))), 0, 1000)
    return beyond_baseline(evaluator, rows, weights, measure(evaluator, rows, weights), {})


def bootstrap(gain, n, rng):
    """Return the 95 % percentile interval of gain(chosen examples), resampled in pairs."""
    return np.percentile([gain(rng.integers(0, n, n)) for _ in range(4000)], [2.5, 97.5])


@pytest.mark.parametrize(("n", "right"), [(48, 1.0), (200, 0.9), (200, 0.45)])
def test_the_gain_over_the_constant_answer_has_the_constants_sampling_error_too(n, right):
    rng = np.random.default_rng(n)
    label = np.sort(np.arange(n) % 12) * (rng.random(n) < 0.7)  # the first class is the most frequent one
    predicted = np.where(rng.random(n) < right, label, (label + 1) % 12)
    found = beyond(Classification(), Labels("single", tuple("abcdefghijkl")), {"label": label, "predicted": predicted})
    assert found.keys() == {"accuracy"}
    gains = (label == predicted).astype(float) - (label == 0)
    low, high = bootstrap(lambda chosen: gains[chosen].mean(), n, rng)
    one = found["accuracy"]
    assert one.value == pytest.approx(gains.mean())
    assert one.better is (True if low > 0 else None)
    assert (one.low, one.high) == pytest.approx((low, high), abs=0.04)  # Newcombe's construction, few examples
    alone = stats.binomtest(round(n * (label == predicted).mean()), n).proportion_ci(method="wilson")
    assert one.high - one.low > 1.2 * (alone.high - alone.low)


def test_the_gain_over_the_mean_is_taken_in_pairs():
    rng = np.random.default_rng(3)
    target = rng.exponential(size=(300, 1))
    value = target + rng.normal(0, 0.8, (300, 1))
    found = beyond(Regression(), Labels("regression", ("score",)), {"target": target, "value": value})
    assert found.keys() == {"mse", "mae", "r2", "pearson"}
    gains = ((value - target) ** 2 - (target - target.mean()) ** 2)[:, 0]
    low, high = bootstrap(lambda chosen: gains[chosen].mean(), 300, rng)
    assert (found["mse"].low, found["mse"].high) == pytest.approx((low, high), abs=0.05)
    assert found["mse"].value == pytest.approx(gains.mean())
