"""Calibration against scikit-learn, scipy and a plain computation."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics

from ftengine.api import EvaluationContext, Labels
from ftengine.errors import PluginError, RecipeError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine_builtins.evaluators.calibration import AFTER, Calibration, CalibrationConfig
from ftengine_builtins.evaluators.temperature import fit_temperature

B = 200


def drawn(n, classes=4, temperature=1.0, seed=0):
    """Logits that are `temperature` times too sharp, and labels drawn from what they should have been."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    labels = (logits + rng.gumbel(size=(n, classes))).argmax(axis=1)
    return logits * temperature, labels


def predictions(logits, labels):
    return [{"label": int(y), "logits": z.tolist()} for z, y in zip(logits, labels, strict=True)]


def accumulate(logits, labels, validation=None, bins=15):
    evaluator = Calibration(CalibrationConfig(bins=bins))
    context = EvaluationContext("some-task", Labels("single", tuple(map(str, range(logits.shape[1])))))
    evaluator.bind(context)
    evaluator.fit(None if validation is None else iter(predictions(*validation)))
    accumulator = Accumulator([evaluator], context, B, predicts=Calibration.reads)
    for index, prediction in enumerate(predictions(logits, labels)):
        accumulator.update(index, prediction)
    return accumulator


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
def test_figures_equal_scikit_learns_and_a_plain_computation(classes):
    logits, labels = drawn(300, classes, temperature=2)
    figures = accumulate(logits, labels).figures()
    p = softmax(logits, axis=1)
    assert figures.keys() == {"overconfidence", "ece", "calibration_error", "brier", "nll"}
    assert figures["nll"].value == pytest.approx(metrics.log_loss(labels, p, labels=range(classes)), rel=1e-12)
    brier = np.mean(((p - np.eye(classes)[labels]) ** 2).sum(axis=1))
    assert figures["brier"].value == pytest.approx(brier, rel=1e-12)
    if classes == 2:  # over both labels: twice what scikit-learn gives for the positive one
        assert brier == pytest.approx(2 * metrics.brier_score_loss(labels, p[:, 1]), rel=1e-12)
    assert figures["ece"].value == pytest.approx(plain_ece(logits, labels), rel=1e-12)
    over = p.max(axis=1).mean() - (p.argmax(axis=1) == labels).mean()
    assert figures["overconfidence"].value == pytest.approx(over, rel=1e-12)


def test_reliability_bins_hold_every_example_once():
    logits, labels = drawn(500, temperature=3)
    details = accumulate(logits, labels, bins=10).details()["calibration"]
    bins = details["bins"]
    assert sum(row["n"] for row in bins) == 500
    assert [row["low"] for row in bins] == pytest.approx(np.arange(10) / 10)
    assert all(row["low"] <= row["confidence"] <= row["high"] for row in bins if row["n"])
    assert all(row["confidence"] is row["accuracy"] is None for row in bins if not row["n"])
    total = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins if row["n"])
    assert details["ece"] == pytest.approx(total / 500)
    right = sum(row["n"] * row["accuracy"] for row in bins if row["n"])
    assert right / 500 == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert "temperature" not in details
    assert "after" not in details
    json.dumps(details, allow_nan=False)


def test_calibrated_logits_show_the_ece_that_chance_makes_and_no_debiased_error():
    figures, chance = [], []
    for seed in range(30):
        accumulator = accumulate(*drawn(200, seed=seed))
        figures.append({name: figure.value for name, figure in accumulator.figures().items()})
        chance.append(accumulator.details()["calibration"]["ece_by_chance"])
    ece = np.mean([row["ece"] for row in figures])
    assert ece > 0.03  # the bias of the plain estimate with 200 examples
    assert np.mean(chance) == pytest.approx(ece, rel=0.1)
    squared = np.mean([row["calibration_error"] ** 2 for row in figures])
    assert squared < ece**2 / 2


def test_wrong_confidence_is_found_whatever_the_estimate():
    logits, labels = drawn(4000, temperature=4)
    figures = accumulate(logits, labels).figures()
    p = softmax(logits, axis=1)
    truth = softmax(logits / 4, axis=1)[np.arange(4000), logits.argmax(axis=1)]
    gap = np.abs(truth - p.max(axis=1))
    assert figures["ece"].value == pytest.approx(gap.mean(), abs=0.02)
    assert figures["calibration_error"].value == pytest.approx(math.sqrt((gap**2).mean()), abs=0.03)


def test_intervals_of_wrong_confidence_hold_the_figure():
    results = accumulate(*drawn(1000, temperature=4)).results()
    for name in ("overconfidence", "brier", "nll"):
        assert results[name].low < results[name].value < results[name].high


@pytest.mark.parametrize(("classes", "temperature"), [(2, 0.4), (3, 1.0), (5, 3.7), (50, 2.0)])
def test_the_temperature_is_the_one_that_an_optimiser_finds(classes, temperature):
    logits, labels = drawn(800, classes, temperature)
    rows = np.arange(len(labels))
    best = minimize_scalar(
        lambda t: -log_softmax(logits / math.exp(t), axis=1)[rows, labels].mean(),
        bounds=(-3, 3),
        method="bounded",
        options={"xatol": 1e-8},
    )
    found = fit_temperature(zip(logits, labels, strict=True))
    assert found == pytest.approx(math.exp(best.x), rel=1e-4)  # the cubic between points a tenth apart
    assert found == pytest.approx(temperature, rel=0.25)


def test_a_stream_in_chunks_gives_the_same_temperature():
    logits, labels = drawn(5000, 10, 2.0)  # 65 × 10 numbers an example: several chunks
    half = fit_temperature(zip(logits[:2500], labels[:2500], strict=True))
    both = fit_temperature(zip(np.tile(logits[:2500], (2, 1)), np.tile(labels[:2500], 2), strict=True))
    assert both == pytest.approx(half, rel=1e-9)


def test_logits_that_are_always_right_or_always_wrong_have_an_extreme_temperature():
    logits = np.tile([[1.0, 0.0], [0.0, 1.0]], (10, 1))
    assert fit_temperature(zip(logits, logits.argmax(axis=1), strict=True)) == pytest.approx(0.05)
    assert fit_temperature(zip(logits, logits.argmin(axis=1), strict=True)) == pytest.approx(20)


def test_equal_logits_and_huge_ones_have_a_finite_temperature():
    flat = fit_temperature([(np.zeros(3), 0), (np.zeros(3), 2)])
    huge = fit_temperature([(np.array([1e4, 0, -1e4]), 0), (np.array([1e4, 0, -1e4]), 1)])
    assert flat == 1
    assert huge == pytest.approx(20)


def test_temperature_mends_what_a_temperature_broke():
    logits, labels = drawn(2000, temperature=3)
    accumulator = accumulate(logits, labels, validation=drawn(2000, temperature=3, seed=1))
    figures, details = accumulator.figures(), accumulator.details()["calibration"]
    assert details["temperature"] == pytest.approx(3, rel=0.1)
    assert figures[AFTER].value == pytest.approx(plain_ece(logits / details["temperature"], labels), rel=1e-9)
    assert figures[AFTER].value < figures["ece"].value / 3
    assert details["after"]["ece"] == figures[AFTER].value
    assert accumulator.evaluators[0].higher_is_better.keys() == figures.keys()


def test_sums_tell_their_temperature_to_an_evaluator_that_was_not_fitted():
    logits, labels = drawn(300, temperature=3)
    fitted = accumulate(logits, labels, validation=drawn(300, temperature=3, seed=1))
    sums = fitted.sums()["calibration"]
    other = Calibration()
    other.bind(EvaluationContext("some-task", Labels("single", tuple("abcd"))))
    assert other.metrics(sums)[AFTER][0] == fitted.figures()[AFTER].value
    assert other.details(sums[0], {}) == fitted.details()["calibration"]


def test_sums_of_two_processes_equal_one_pass():
    logits, labels = drawn(200)
    a, b = accumulate(logits[:0], labels[:0]), accumulate(logits[:0], labels[:0])
    for index, prediction in enumerate(predictions(logits, labels)):
        (a if index % 3 else b).update(index, prediction)
    a.merge(b)
    whole = accumulate(logits, labels)
    assert {k: m.value for k, m in a.results().items()} == pytest.approx(
        {k: m.value for k, m in whole.results().items()}, rel=1e-12
    )


def test_one_example_a_bin_says_nothing_about_calibration():
    results = accumulate(np.array([[9.0, 0.0, 0.0]]), np.array([0])).results()
    assert math.isnan(results["calibration_error"].value)
    assert results["nll"].value == pytest.approx(math.log1p(2 * math.exp(-9)))


def test_impossible_truth_stays_finite():
    results = accumulate(np.array([[1e4, 0.0]] * 4), np.array([1] * 4)).results()
    assert results["nll"].value == pytest.approx(1e4)
    assert results["ece"].value == 1
    assert results["brier"].value == 2


@pytest.mark.parametrize(
    ("labels", "what"),
    [(None, "no labels"), (Labels("multi", ("a", "b")), "several"), (Labels("regression", ("x",)), "numbers")],
)
def test_other_tasks_are_refused(labels, what):
    with pytest.raises(RecipeError, match=f"'calibration' needs one label .* has {what}"):
        Calibration().bind(EvaluationContext("some-task", labels))


def test_logits_for_other_labels_are_refused():
    evaluator = Calibration()
    evaluator.bind(EvaluationContext("some-task", Labels("single", ("a", "b"))))
    with pytest.raises(PluginError, match=r"logits of shape \(3,\); there are 2 labels"):
        evaluator.statistics({"label": 0, "logits": [0.1, 0.2, 0.3]})
    with pytest.raises(PluginError, match="label -100"):
        evaluator.statistics({"label": -100, "logits": [0.1, 0.2]})
