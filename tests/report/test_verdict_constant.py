"""A model is measured by its metric, and by what is reached without looking: constant answers, a fresh head."""

import numpy as np
import pytest
from report_samples import LABELS, baseline, change, figure
from verdicts import alarms, found, losses, put, reached, steps


def confused(*rows):
    return put("evaluation.details.tuned.classification.baseline", baseline(rows))


@pytest.mark.parametrize(
    ("rows", "accuracy", "kinds"),
    [
        (((300, 0, 0), (50, 0, 0), (50, 0, 0)), 0.75, {"quality", "classes"}),
        (((300, 0, 0), (0, 50, 0), (2, 0, 0)), 0.99, set()),  # a class of two may be missed
        (((300, 0, 0), (49, 1, 0), (50, 0, 3)), 0.8, {"classes"}),  # answered, but hardly ever
        (((300, 0, 0), (35, 15, 0), (0, 0, 50)), 0.9, set()),  # perhaps a quarter
        (((30, 0, 0), (0, 30, 0), (4, 0, 0)), 0.94, set()),  # none of 4 is no proof
        (((400, 0, 0), (0, 0, 0), (0, 0, 0)), 1.0, set()),  # one class: nobody can be better
    ],
)
def test_constant_answers_and_classes_never_answered_are_alarms(verdict, rows, accuracy, kinds):
    assert (
        alarms(verdict(confused(*rows), put("evaluation.tuned.accuracy", figure(accuracy)))) - {"over-fitting"} == kinds
    )


@pytest.mark.parametrize(("counts", "named"), [([200, 2, 200], True), ([200, 100, 200], False), (None, False)])
def test_a_class_with_few_training_examples_is_hardly_answered_where_surely_half_is_missed(verdict, counts, named):
    labels = put("facts.labels", {"kind": "single", "names": LABELS, "counts": counts or []})
    told = verdict(confused((100, 0, 0), (28, 5, 0), (0, 0, 100)), labels)
    assert bool(found(told, "classes")) == named


@pytest.mark.parametrize(
    ("weights", "rows", "advised"),
    [
        (None, ((300, 0, 0), (49, 1, 0), (50, 0, 3)), True),
        ("balanced", ((300, 0, 0), (49, 1, 0), (50, 0, 3)), False),
        (None, ((130, 0, 0), (130, 0, 0), (0, 0, 140)), False),  # it is not for being rare that one is missed
    ],
)
def test_classes_that_are_missed_for_being_rare_are_to_be_weighted(verdict, weights, rows, advised):
    (one,) = found(verdict(confused(*rows), put("recipe.task.class_weights", weights)), "classes")
    assert ("train.sampling or task.class_weights" in one.text) == advised


@pytest.mark.parametrize(
    ("told", "level", "headline"),
    [
        ({}, "good", "better, "),
        (
            {"given": "x", "count": 400},
            "alarm",
            "not usable, it always answers “x”, to all 400 examples of the test ",
        ),
        (
            {"given": "", "count": 400},
            "alarm",
            "not usable, it always answers nothing, to all 400 examples",
        ),
        (
            {"given": "x", "count": 390},
            "alarm",
            "not usable, it answers “x” to 390 of 400 examples",
        ),
        ({"given": "x", "count": 300}, "good", "better, "),
        ({"given": "x", "count": 19, "total": 20}, "good", "better, "),  # 76 % to 99 %
        ({"given": "", "count": 8, "total": 20}, "good", "better, "),
        (
            {"given": "", "count": 12, "total": 20},
            "alarm",
            "not usable, it answers nothing to 12 of 20 examples",
        ),
        (
            {"given": "x", "count": 400, "share": 0.995},
            "good",
            "better, ",
        ),  # so is the truth, all but
        (
            {"figures": {"drift": 0.49}},
            "alarm",
            "not shown to be better than always answering “b” (0.490), ",
        ),
        ({"figures": {"drift": 0.6}}, "alarm", "no better than always answering “b” (0.600)"),
        (
            {"figures": {"drift": 0.6, "accuracy": 0.8}},
            "note",
            "no better than always answering “b” (0.600)",
        ),
        ({"figures": {"accuracy": 0.95}}, "good", "better, "),  # the built-in one's is taken
    ],
)
def test_anybodys_metric_decides_and_is_measured_by_what_is_reached_without_looking(verdict, told, level, headline):
    found = verdict(reached(**told))
    assert found.level == level
    assert found.headline.startswith(f"Drift 0.500, base 0.200: {headline}")


def test_figures_of_the_headline_are_those_that_its_text_has(verdict):
    figures = put("evaluation.details.tuned.classification.baseline.figures", {"accuracy": 0.4})
    (first, *_) = verdict(put("facts.new_modules", ["classifier"]), figures).findings
    assert "“business” (40 %), a difference of +53.0 points (95 % interval +50.0 to +56.0)" in first.text
    assert first.figures == {
        "metric": "accuracy",
        "tuned": {**figure(0.93), "rows": None, "worth": None},
        "baseline": 0.4,
        "difference": {**change(0.53, 0.03, p=0.001, detectable=None), "test": None, "p_adjusted": None},
    }
    (first, *_) = verdict(reached(given="x", count=400)).findings
    assert (first.figures["baseline"], first.figures["count"], first.figures["given"]) == (0.3, 400, "x")
    (first, *_) = verdict(reached("classification", "exact", figures={})).findings
    assert "372 of 400 answers are exact (260 of its base's)" in first.text
    assert [first.figures[key] for key in ("exact", "base_exact", "answers")] == [372, 260, 400]


def test_a_fresh_head_is_reported_where_nothing_is_known_of_constant_answers(verdict):
    """Whatever metric decides: that of an evaluator without a baseline, too."""
    fresh = put("facts.new_modules", ["classifier"])
    told = verdict(fresh, reached(figures={"accuracy": 0.4})).headline
    assert told.startswith("Drift 0.500, base 0.200 (untrained head): better, ")
    assert "untrained" not in verdict(reached(figures={"accuracy": 0.4})).headline


def test_a_model_is_measured_by_its_pairs_with_the_constant_answer(verdict):
    assert verdict(reached(gains={"drift": change(0.3)})).level == "good"
    told = verdict(reached(gains={"drift": change(0.2, half=0.21, better=None)}))
    assert told.headline == (
        "Drift 0.500, base 0.200: not shown to be better than always answering “b” (0.300), a difference of +0.20 "
        "(95 % interval −0.01 to +0.41)."
    )
    gains = {"drift": change(0.2, half=0.21, better=None)}
    told = verdict(reached(gains=gains, figures={"drift": 0.3, "accuracy": 0.8, "macro_f1": 0.3}))
    assert "But it does more than guess: accuracy 0.930" in told.headline
    assert "against 0.800 by guessing" in told.headline


def ranked(low, high, passes=2, guess=0.5, seen=None, level=0.6, **told):
    """Return changes: a model that is no better than a constant answer, with a ranking of some interval.

    Args:
        seen: the same ranking of training examples.
        level: what a constant answer reaches; the model reaches 0.5.
        told: more of what is reached without looking.
    """

    def spoil(files):
        evaluation = files["evaluation"]
        auc = {"label": "ROC AUC", "higher_is_better": True, "pooled": False, "evaluator": "own"}
        evaluation["metrics"]["auc"] = auc
        evaluation["base"]["auc"] = figure(0.7)
        evaluation["tuned"]["auc"] = figure((low + high) / 2) | {"low": low, "high": high}
        evaluation["difference"]["auc"] = change(-0.2, better=False)
        if seen is not None:
            evaluation["training"]["tuned"]["auc"] = figure(seen)
        for line in files["metrics"]:
            line |= {"examples": 16 * passes} if "loss" in line else {}

    return reached(figures={"drift": level, "auc": guess}, **told), spoil


@pytest.mark.parametrize(
    ("spoil", "asked"),
    [
        (ranked(0.413, 0.511), "Check that each label belongs to its text: the scores carry no information"),
        (ranked(0.413, 0.511, seen=0.97), "Check that each label belongs to its text, or train on more examples: "),
        (ranked(0.55, 0.65), ""),
        (ranked(0.48, 0.93), ""),
        (ranked(-0.05, 0.26, guess=0), "Check that each label belongs to its text: "),  # a correlation
        (ranked(-0.05, 0.36, guess=0), ""),
        (ranked(0.413, 0.511, passes=0.5), ""),
        # labels of few rows, learnt by heart
        (ranked(0.48, 0.76, seen=0.97), "Train on more examples, and check that each label belongs to its text: "),
        (ranked(0.48, 0.76, seen=0.75), ""),
        (ranked(0.53, 0.76, seen=0.97), ""),
    ],
)
def test_scores_without_information_ask_whether_labels_belong_to_their_texts(verdict, spoil, asked):
    told = verdict(*spoil)
    assert (told.quality.level, told.quality.source) == ("alarm", "constant-answer")
    assert told.findings[0].figures.get("uninformative") == (["auc"] if asked else None)
    assert told.headline.startswith(asked)
    assert ("check that each label" in told.headline.lower()) == bool(asked)


@pytest.mark.parametrize(("last", "said"), [(1.12, "Check that each label"), (0.6, "Train longer")])
def test_a_loss_that_only_came_near_that_of_a_constant_asks_for_no_longer_training(verdict, last, said):
    """Random labels after a few passes: the loss fell from a bad start to what the shares of the labels give."""
    falling = losses(*((last * up, last * up) for up in (1.9, 1.7, 1.5, 1.3, 1.0)))
    classes = {"classes": [("a", 140, 100), ("b", 130, 150), ("c", 130, 150)]}
    told = verdict(falling, steps(*np.linspace(2 * last, last, 100)), *ranked(0.413, 0.511, passes=2, **classes))
    assert told.headline.startswith(said)


@pytest.mark.parametrize(("low", "high", "guess"), [(0.22, 0.38, 0.5), (-0.6, -0.1, 0)])
def test_scores_that_rank_the_wrong_way_round_carry_information(verdict, low, high, guess):
    told = verdict(*ranked(low, high, guess=guess))
    (one,) = found(told, "learning")
    assert (one.level, one.figures) == ("alarm", {"wrong_way_round": ["auc"]})
    assert "rank held-out examples the wrong way round (ROC AUC" in told.headline
    assert "are the labels swapped?" in told.headline
    assert "no information" not in told.headline
    assert one.text.endswith("swapped?")


@pytest.mark.parametrize(("low", "high", "cause"), [(0.47, 0.89, ""), (0.41, 0.59, "constant-answer")])
def test_what_was_learnt_by_heart_stays_over_fitting_where_scores_may_know_new_labels_too(verdict, low, high, cause):
    """ROC AUC 0.68 between 0.47 and 0.89 proves no wrong labels."""
    told = verdict(*ranked(low, high, seen=1.0), put("evaluation.training.tuned.drift", figure(1.0)))
    assert ("are not shown to know the labels of held-out examples (ROC AUC 0.68" in told.headline) == (not cause)
    assert [one.explained_by for one in found(told, "over-fitting")] == [cause]


def test_a_loss_that_rose_and_came_down_to_little_is_not_why_a_model_is_of_no_use(verdict):
    """It looks so where labels are learnt by heart."""

    def rose(last):
        return steps(*[0.7] * 3, *[1.4] * 3, *[last] * 94)

    labels = {"classes": [("a", 200, 150), ("b", 200, 250)]}
    told = verdict(rose(0.01), *ranked(0.48, 0.76, seen=0.97, **labels))
    assert told.findings[0].figures["uninformative"] == ["auc"]
    assert told.headline.startswith("Train on more examples")
    assert "unstable" not in "".join(one.text for one in told.findings)
    assert "unstable" in verdict(rose(0.4), *ranked(0.48, 0.76, seen=0.75, **labels)).headline
    assert "unstable" in verdict(rose(0.01), *ranked(0.48, 0.76, seen=0.75)).headline  # nothing is known of guessing


@pytest.mark.parametrize(
    ("low", "level", "expected"),
    [(0.8, 0.48, "note"), (0.45, 0.48, "alarm"), (0.8, 0.52, "note"), (0.45, 0.52, "alarm"), (0.8, 0.6, "alarm")],
)
def test_a_model_that_ranks_well_is_an_alarm_where_it_is_surely_behind_constant_answers(verdict, low, level, expected):
    """Of few examples the one is not shown, and the other is."""
    quality = verdict(*ranked(low, 0.97, level=level)).quality
    assert (quality.level, quality.source) == (expected, "constant-answer")


@pytest.mark.parametrize(("test", "advice"), [("test.jsonl", "Hold out more examples, or train"), (0.2, "Train")])
@pytest.mark.parametrize(("n", "low", "leads"), [(12, 0.8, True), (400, 0.8, False), (12, 0.45, False)])
def test_few_held_out_examples_are_why_a_model_that_is_ahead_is_not_shown_to_be_better(
    verdict, n, low, leads, test, advice
):
    """It is said after the figures; not where the scores tell nothing either, and not of many examples."""
    told = verdict(*ranked(low, 0.97, level=0.48), put("evaluation.tuned.drift.n", n), put("recipe.data.test", test))
    assert (
        told.headline.startswith("Drift 0.500, base 0.200: not shown to be better than always answering") or not leads
    )
    assert told.findings[1].text.startswith(f"{advice} on folds (ftengine cross-validate): ") or not leads
    assert ([one.explained_by for one in told.findings[:2]] == ["", ""]) or not leads


def test_a_rare_class_is_no_cause_where_scores_tell_nothing(verdict):
    """Weights do not help where the labels of new examples cannot be told."""
    rare = {"classes": [("usual", 360, 400), ("urgent", 40, 0)]}
    counts = put("facts.labels", {"kind": "single", "names": ["usual", "urgent"], "counts": [540, 60]})
    weights = put("recipe.task.class_weights", None)
    assert verdict(counts, weights, *ranked(0.8, 0.9, **rare)).headline.startswith("Set train.sampling")
    few = put("facts.labels", {"kind": "single", "names": ["usual", "urgent"], "counts": [540, 9]})
    told = verdict(few, weights, *ranked(0.2, 0.53, **rare))
    assert told.headline.startswith("Set train.sampling")  # of nine examples, scores say nothing of the labels
    assert not any("uninformative" in one.figures for one in told.findings)
    told = verdict(counts, weights, *ranked(0.45, 0.55, **rare))
    assert told.headline.startswith("Check that each label belongs to its text")
    assert [one.explained_by for one in found(told, "classes")] == ["constant-answer"]
