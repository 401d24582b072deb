"""What holds for every evaluator of the box, and for one that others write."""

import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from ftengine.api import Baseline, Evaluator, ExampleScores, Labels, Metric
from ftengine.testing import check_evaluator, rows_of
from ftengine_builtins import ftengine_evaluators

RNG = np.random.default_rng(0)
TAGS = Labels("single", ("O", "B-X", "I-X"))
TEXTS = ["a red fox", "I cannot", "", "the fox sleeps here", "A fox!", "no"]
ANSWERS = [{"completion": a, "reference": b, "expect": e} for a in TEXTS for b, e in
           (("a red fox", "refuse"), ("the fox sleeps", "answer"), (None, None))]  # fmt: skip


def classes(n=12):
    scores = RNG.dirichlet([1, 1, 1], n)
    return [{"label": int(RNG.integers(3)), "predicted": int(p.argmax()), "scores": p.tolist(),
             "logits": np.log(p).tolist()} for p in scores]  # fmt: skip


def several(n=12):
    scores = RNG.random((n, 3)).round(1)
    return [{"label": RNG.integers(0, 2, 3).tolist(), "predicted": (p > 0.5).astype(int).tolist(), "scores": p.tolist()}
            for p in scores]  # fmt: skip


def tags(n=12):
    return [{"tags": RNG.integers(0, 3, k).tolist(), "predicted_tags": RNG.integers(0, 3, k).tolist()}
            for k in RNG.integers(1, 6, n)]  # fmt: skip


def numbers(outputs, n=12):
    return [{"target": RNG.normal(size=outputs).tolist(), "value": RNG.normal(size=outputs).tolist()} for _ in range(n)]


CASES = {
    "calibration": [(TAGS, classes())],
    "classification": [(TAGS, classes()), (Labels("multi", ("a", "b", "c")), several())],
    "entities": [(TAGS, tags()), (Labels("single", ("DET", "NOUN", "VERB")), tags())],
    "generation": [(None, ANSWERS)],
    "memorisation": [(None, ANSWERS)],
    "perplexity": [(None, [{"loss": float(x), "tokens": k} for k, x in enumerate(RNG.random(6))])],
    "refusal": [(None, ANSWERS)],
    "regression": [(Labels("regression", ("x",)), numbers(1)), (Labels("regression", ("x", "y")), numbers(2))],
}


@pytest.mark.parametrize("kind", ftengine_evaluators(), ids=lambda kind: kind.name)
def test_evaluators_of_the_box_conform(kind):
    for labels, predictions in CASES[kind.name]:
        check_evaluator(kind, predictions, labels)


class Matthews(Evaluator):
    """Matthews' correlation of the true and the predicted label."""

    name = "matthews"
    reads = frozenset({"label", "predicted"})
    metrics = {"matthews": Metric("Matthews correlation", higher_is_better=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"matthews": float(matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights))}


def test_an_evaluator_is_a_few_lines_around_scikit_learn():
    predictions = classes(30)
    check_evaluator(Matthews, predictions, TAGS)
    rows = rows_of(Matthews(), predictions)
    weights = np.arange(30.0)
    expected = matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights)
    assert Matthews().score(rows, weights) == {"matthews": expected}


class Right(Evaluator):
    """The share of right answers; what follows breaks it."""

    name = "right"
    reads = frozenset({"right"})
    metrics = {"right": Metric("right answers", higher_is_better=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"right": float(weights @ rows["right"] / weights.sum())}


class Uneven(Right):
    def keep(self, prediction):
        return {"list": [1] * prediction["width"]}


class Undeclared(Right):
    def score(self, rows, weights):
        return {**super().score(rows, weights), "wrong": 0.0}


class Impure(Right):
    def keep(self, prediction):
        prediction["right"] += 1
        return {}


class Unweighted(Right):
    def score(self, rows, weights):
        return {"right": float(rows["right"].mean())}


class OtherResamples(Right):
    def score_resamples(self, rows, weights):
        return {"right": weights @ rows["right"]}


class Mean(Right):
    def example_scores(self, rows):
        return ExampleScores(rows["right"].mean(), rows["right"])

    def trials(self, rows):
        return {"wright": 4}

    def details(self, rows, estimate):
        yield "nothing", math.nan


class Constant(Right):
    def details(self, rows, estimate):
        yield Baseline(answer="yes", share=0.5, figures={"right": 0.5}, total=len(rows["right"])).fact()

    def baseline_resamples(self, rows, weights):
        return {"right": np.full(len(weights), 0.6)}


class Elsewhere(Right):
    def details(self, rows, estimate):
        yield Baseline(answer="yes", share=0.5, figures={"wright": 0.5}, total=len(rows["right"])).fact()


class Overfull(Right):
    metrics = {"right": Metric("right answers", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"right": 1.7}


@pytest.mark.parametrize(
    ("kind", "failing"),
    [
        (Uneven, ["kept_columns_have_one_shape"]),
        (Undeclared, ["scores_are_the_declared_metrics"]),
        (Overfull, ["proportions_lie_between_0_and_1"]),
        (Impure, ["scores_are_pure"]),
        (Unweighted, ["a_weight_of_two_is_the_row_twice", "a_weight_of_zero_is_no_row"]),
        (OtherResamples, ["resamples_equal_scores"]),
        (Mean, ["example_scores_are_one_a_row", "what_intervals_rest_on_names_metrics",
                "details_are_displays_and_json"]),
        (Constant, ["a_baseline_is_measured_as_it_is_told"]),
        (Elsewhere, ["details_are_displays_and_json"]),
    ],
)  # fmt: skip
def test_what_is_broken_fails_the_check_that_is_meant(kind, failing):
    predictions = [{"right": i % 2, "width": 1 + i % 2} for i in range(5)]
    check_evaluator(Right, predictions)
    with pytest.raises(AssertionError) as error:
        check_evaluator(kind, predictions)
    assert [text.split(":")[0] for text in str(error.value).split("; ")] == failing
    check_evaluator(kind, predictions, expected_failed_checks=dict.fromkeys(failing, "it is broken"))


def test_expected_failures_must_fail_and_exist():
    predictions = [{"right": i % 2} for i in range(4)]
    with pytest.raises(AssertionError, match="scores_are_pure: passes, though it was expected to fail"):
        check_evaluator(Right, predictions, expected_failed_checks={"scores_are_pure": "?"})
    with pytest.raises(AssertionError, match=r"names \['detials'\]"):
        check_evaluator(Right, predictions, expected_failed_checks={"detials": "?"})
