"""Calibration against scikit-learn, scipy and a plain computation."""

import math

import numpy as np
import pytest
from expected import raises
from scipy.special import softmax
from sklearn import metrics

from ftengine.api import Labels
from ftengine.errors import PluginError, RecipeError
from ftengine.testing import rows_of
from ftengine_builtins.evaluators.calibration import Calibration, fit_temperature


def drawn(n, classes=4, temperature=1.0, seed=0):
    """Logits that are `temperature` times too sharp, and labels drawn from what they should have been."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    labels = (logits + rng.gumbel(size=(n, classes))).argmax(axis=1)
    return logits * temperature, labels


def predictions(logits, labels):
    return [{"label": int(y), "logits": z.tolist()} for z, y in zip(logits, labels, strict=True)]


def bound(classes=4, bins=15, validation=None):
    evaluator = Calibration(Calibration.Config(bins=bins))
    evaluator.set_labels("a-task", Labels("single", tuple(map(str, range(classes)))))
    evaluator.fit(None if validation is None else rows_of(evaluator, predictions(*validation)))
    return evaluator


def plain_ece(logits, labels, bins=15):
    p = softmax(logits, axis=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    error = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence >= low) & (confidence < low + 1 / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_equal_scikit_learns_and_a_plain_computation(scored, classes):
    logits, labels = drawn(300, classes, temperature=2)
    found = scored(bound(classes), predictions(logits, labels))
    assert found.scores.keys() == {"overconfidence", "ece", "calibration_error", "brier", "nll"}
    assert found.scores["ece"] == pytest.approx(plain_ece(logits, labels))
    for rows, values in [(np.arange(300), found.scores), *found.resamples(10)]:
        p, y = softmax(logits[rows], axis=1), labels[rows]
        assert values["nll"] == pytest.approx(metrics.log_loss(y, p, labels=range(classes)))
        brier = np.mean(((p - np.eye(classes)[y]) ** 2).sum(axis=1))
        assert values["brier"] == pytest.approx(brier)
        if classes == 2:  # over both labels: twice what scikit-learn gives for the positive one
            assert brier == pytest.approx(2 * metrics.brier_score_loss(y, p[:, 1]))
        over = p.max(axis=1).mean() - (p.argmax(axis=1) == y).mean()
        assert values["overconfidence"] == pytest.approx(over)


def test_wrong_confidence_is_found_whatever_the_estimate(scored):
    logits, labels = drawn(4000, temperature=4)
    scores = scored(bound(), predictions(logits, labels)).scores
    p = softmax(logits, axis=1)
    truth = softmax(logits / 4, axis=1)[np.arange(4000), logits.argmax(axis=1)]
    gap = np.abs(truth - p.max(axis=1))
    assert scores["ece"] == pytest.approx(gap.mean(), abs=0.02)
    assert scores["calibration_error"] == pytest.approx(math.sqrt((gap**2).mean()), abs=0.03)


@pytest.mark.parametrize(("classes", "temperature"), [(2, 0.4), (3, 1.0), (5, 3.7), (50, 2.0)])
def test_the_temperature_is_found_and_makes_the_likelihood_stationary(classes, temperature):
    logits, labels = drawn(800, classes, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.25)
    # At the best 1/T the expected logit of the true label is the mean of those that are there.
    expected = (softmax(logits / found, axis=1) * logits).sum(axis=1).mean()
    assert expected == pytest.approx(logits[np.arange(800), labels].mean(), abs=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize(
    ("labels", "what"),
    [(None, "no labels"), (Labels("multi", ("a", "b")), "several"), (Labels("regression", ("x",)), "numbers")],
)
def test_other_tasks_are_refused(labels, what):
    with raises(RecipeError, "'calibration'", what):
        Calibration().set_labels("a-task", labels)


@pytest.mark.parametrize(("row", "what"), [((0, [0.1, 0.2, 0.3]), "3 logits"), ((-100, [0.1, 0.2]), "-100")])
def test_logits_for_other_labels_are_refused(scored, row, what):
    with raises(PluginError, what, "2 labels"):
        scored(bound(2), [{"label": row[0], "logits": row[1]}])
