"""An evaluator of a few lines passes; each that is broken in one way fails by the check that is meant."""

import math
from pathlib import Path

import numpy as np
import pytest
from broken import failed, variant
from expected import raises
from sklearn.metrics import matthews_corrcoef

from ftengine.api import Baseline, CodeEvaluator, Evaluator, ExampleScores, IntervalEvaluator, Metric
from ftengine.errors import RecipeError
from ftengine.testing import check_evaluator, check_results, predictions, rows_of
from ftengine.testing.checks import results_of
from ftengine.testing.evaluators import EvaluatorChecks

pytestmark = pytest.mark.slow


class Matthews(Evaluator):
    """Matthews' correlation of the true and the predicted label."""

    name = "matthews"
    reads = frozenset({"label", "predicted"})
    metrics = {"matthews": Metric("Matthews correlation", higher_is_better=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"matthews": float(matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights))}


class OfOneLabel(Matthews):
    """Matthews' correlation, of one label an example."""

    def set_labels(self, task, labels):
        if labels is None or labels.kind != "single":
            raise RecipeError("Matthews' correlation is of one label an example.")


def test_an_evaluator_is_a_few_lines_around_scikit_learn():
    results = {one.check: one for one in check_results(OfOneLabel)}
    assert [one for one in results.values() if one.outcome == "failed"] == []
    assert results["scores_are_pure"].outcome == "passed"
    assert results["several labels an example"].reason == "Matthews' correlation is of one label an example."
    predicted = predictions()[0].predictions
    rows, weights = rows_of(Matthews(), predicted), np.arange(len(predicted), dtype=float)
    expected = matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights)
    assert Matthews().score(rows, weights) == {"matthews": expected}


def test_what_cannot_be_measured_has_to_be_refused():
    assert failed(Matthews).keys() == {"what_it_cannot_measure_is_refused"}


def test_predictions_that_nobody_makes_are_called_missing():
    results = check_results(Right)
    assert [one.outcome for one in results] == ["passed", "does not apply"]
    assert "no shipped predictions have ['right']; use check_evaluator" in results[1].reason


class Right(Evaluator):
    """The share of right answers; what follows breaks it."""

    name = "right"
    reads = frozenset({"right"})
    metrics = {"right": Metric("right answers", higher_is_better=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"right": float(weights @ rows["right"] / weights.sum())}


class Impure(Right):
    def keep(self, prediction):
        prediction["right"] += 1
        return {}


class Forgetting(Right):
    """Scores what it has not scored before."""

    last = None

    def score(self, rows, weights):
        self.last, before = float(weights @ rows["right"] / weights.sum()), self.last
        return {"right": self.last if before is None else (self.last + before) / 2}


class Clipping(Right):
    """Changes a column of floats in place."""

    def score(self, rows, weights):
        rows["sure"] *= 0.5
        return super().score(rows, weights)


class Whole(Right):
    """Gives whole numbers, which are numbers too."""

    def score(self, rows, weights):
        return {"right": int(weights @ rows["right"])}


class Numbering(Right):
    """Keeps how many examples came before."""

    seen = 0

    def keep(self, prediction):
        self.seen += 1
        return {"number": self.seen}


class Ordered(Right):
    """Counts those first in the table alone."""

    def score(self, rows, weights):
        first = np.cumsum(weights) <= weights.sum() / 2
        return {"right": float((weights * first) @ rows["right"])}


class Mean(Right, IntervalEvaluator):
    def score_examples(self, rows):
        return ExampleScores(rows["right"].mean(), rows["right"])

    def trials(self, rows):
        return {"wright": 4}

    def details(self, rows, estimate):
        yield "nothing", math.nan


class Constant(Right, IntervalEvaluator):
    def details(self, rows, estimate):
        yield Baseline(answer="yes", share=0.5, figures={"right": 0.5}, total=len(rows["right"])).fact()

    def baseline_resamples(self, rows, weights):
        return {"right": np.full(len(weights), 0.6)}


class Elsewhere(Right):
    def details(self, rows, estimate):
        yield Baseline(answer="yes", share=0.5, figures={"wright": 0.5}, total=len(rows["right"])).fact()


class Trusting(Right):
    """Takes it that a column holds a text."""

    columns = frozenset({"rubric"})

    def check_row(self, row):
        row["rubric"].strip()


class WithCode(Right, CodeEvaluator):
    def runs_code(self):
        return "the function score.py:right"


class Overfull(Right):
    metrics = {"right": Metric("right answers", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"right": 1.7}


@pytest.mark.parametrize(
    ("kind", "failing"),
    [
        (
            variant(Right, keep=lambda self, prediction: {"list": [1] * prediction["width"]}),
            ["kept_columns_have_one_shape"],
        ),
        (
            variant(Right, score=lambda self, rows, weights: {**Right.score(self, rows, weights), "wrong": 0.0}),
            ["scores_are_the_declared_metrics"],
        ),
        (variant(Right, score=lambda *_: {"right": float("nan")}), ["scores_are_the_declared_metrics"]),
        (Overfull, ["proportions_lie_between_0_and_1"]),
        (Impure, ["scores_are_pure"]),
        (Numbering, ["keeping_is_pure"]),
        (
            variant(Right, score=lambda self, rows, weights: {"right": float(rows["right"].mean())}),
            ["a_weight_of_two_is_the_row_twice", "a_weight_of_zero_is_no_row"],
        ),
        (
            variant(Right, score_resamples=lambda self, rows, weights: {"right": weights @ rows["right"]}),
            ["resamples_equal_scores"],
        ),
        (
            Mean,
            ["example_scores_are_one_a_row", "what_intervals_rest_on_names_metrics", "details_are_displays_and_json"],
        ),
        (Constant, ["a_baseline_reaches_its_figures"]),
        (Elsewhere, ["details_are_displays_and_json"]),
        (Trusting, ["what_cannot_be_read_is_a_data_error"]),
        (variant(WithCode, runs_code=lambda *_: "", code_files=lambda *_: []), ["what_runs_beside_plugins_is_named"]),
        (variant(WithCode, code_files=lambda *_: [Path("no-such-file.py")]), ["what_runs_beside_plugins_is_named"]),
    ],
)
def test_what_is_broken_fails_the_check_that_is_meant(kind, failing):
    predictions = [{"right": i % 2, "width": 1 + i % 2} for i in range(5)]
    check_evaluator(Right, predictions)
    with pytest.raises(AssertionError) as error:
        check_evaluator(kind, predictions)
    assert [text.split(":")[0] for text in str(error.value).split("; ")] == failing
    check_evaluator(kind, predictions, expected_failed_checks=dict.fromkeys(failing, "it is broken"))


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Clipping, "scores_are_pure"),
        (Forgetting, "scores_are_pure"),
        (Ordered, "the_order_of_rows_does_not_matter"),
    ],
)
def test_what_breaks_several_checks_fails_the_one_that_is_meant(kind, check):
    with pytest.raises(AssertionError) as error:
        check_evaluator(kind, [{"right": i % 2, "sure": i / 6} for i in range(6)])
    assert check in [reason.split(":")[0] for reason in str(error.value).split("; ")]


def test_whole_numbers_are_scores_too_and_what_is_not_done_is_skipped():
    predictions = [{"right": i % 2} for i in range(4)]
    check_evaluator(Whole, predictions)
    results = {one.check: one.outcome for one in results_of(EvaluatorChecks(Right, predictions, None), {})}
    skipped = {"example_scores_are_one_a_row", "what_intervals_rest_on_names_metrics", "resamples_equal_scores"}
    assert {results[name] for name in skipped} == {"skipped"}


def test_expected_failures_must_fail_and_exist():
    predictions = [{"right": i % 2} for i in range(4)]
    with raises(AssertionError, "scores_are_pure"):
        check_evaluator(Right, predictions, expected_failed_checks={"scores_are_pure": "?"})
    with raises(AssertionError, "'detials'"):
        check_evaluator(Right, predictions, expected_failed_checks={"detials": "?"})


def test_an_evaluator_whose_resamples_take_long_fails(monkeypatch):
    monkeypatch.setattr("ftengine.testing.evaluators.MOST_SECONDS", 0)
    assert "resamples_are_quick" in failed(OfOneLabel)
