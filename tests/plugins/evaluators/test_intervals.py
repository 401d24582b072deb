"""How often the 95 % intervals of rankings and calibration hold the truth.

Four classes, 200 examples; logits are twice too sharp for the labels that are drawn.
"""

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from ftengine.api import EvaluationContext, Labels
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine_builtins.evaluators.calibration import Calibration
from ftengine_builtins.evaluators.classification import Classification

CLASSES = 4
MEASURED = {"roc_auc": 0.957, "brier": 0.967, "nll": 0.965, "overconfidence": 0.96}
"""Share of 600 sets (400 resamples each); of 200 for overconfidence, which was 0.955 to 0.965 with logits 1, 1.15, 2
and 4 times too sharp and 100 or 400 examples. What was tried for the calibration errors missed 0.93 to 0.97 somewhere
there: percentiles 0.84 to 0.93, with the noise taken out twice 0.95 to 1, moved onto the value 0.87 to 0.98."""

TRUTH = {"roc_auc": 0.8984, "brier": 0.4571, "nll": 0.9136, "overconfidence": 0.1416}
"""Figures of 40,000 examples, a fourteenth as uncertain as those of 200; 200,000 for overconfidence."""


def accumulate(n, seed, resamples):
    rng = np.random.default_rng([n, seed])
    logits = rng.normal(0, 2, (n, CLASSES))
    labels = (logits + rng.gumbel(size=(n, CLASSES))).argmax(axis=1)
    logits *= 2
    context = EvaluationContext("some-task", Labels("single", tuple("abcd")))
    accumulator = Accumulator([Classification(), Calibration()], context, resamples, seed)
    for index, (z, p, y) in enumerate(zip(logits, softmax(logits, axis=1), labels, strict=True)):
        accumulator.update(index, {"label": int(y), "predicted": int(z.argmax()), "scores": p, "logits": z})
    return accumulator


def covered(runs):
    held = dict.fromkeys(MEASURED, 0)
    for seed in range(1, runs + 1):
        results = accumulate(200, seed, 400).results()
        for name in held:
            held[name] += results[name].low <= TRUTH[name] <= results[name].high
    return held


def test_intervals_hold_the_truth_as_often_as_measured():
    for name, held in covered(60).items():
        assert held >= stats.binom.ppf(0.001, 60, MEASURED[name]), name


@pytest.mark.parametrize("name", ["ece", "calibration_error"])
def test_calibration_errors_have_no_interval(name):
    results = accumulate(200, 1, 400).results()
    assert results[name].value > 0
    assert results[name].low is results[name].high is None


def always_right(n):
    """A model of two classes that is right on all examples, and sure of 99 to 100 %."""
    rng = np.random.default_rng(n)
    context = EvaluationContext("some-task", Labels("single", ("no", "yes")))
    accumulator = Accumulator([Classification(), Calibration()], context, 400, 0)
    for index in range(n):
        sure = 0.99 + 0.01 * rng.random()
        logits = [np.log(sure / (1 - sure)), 0.0]
        accumulator.update(index, {"label": 0, "predicted": 0, "logits": logits})
    return accumulator


def test_right_answers_alone_do_not_prove_that_confidence_is_earned():
    results = always_right(50).results()
    assert results["accuracy"].value == 1
    over = results["overconfidence"]
    assert over.value < 0
    assert over.high == pytest.approx(1 - results["accuracy"].low + over.value, abs=1e-3)


def test_what_two_nearly_perfect_models_differ_by_is_no_surer_than_either():
    found = compare(always_right(60), always_right(60))["overconfidence"]
    assert found.low < -0.04 < 0 < 0.04 < found.high
    assert found.better is None
