"""What leads the headline where several findings might: the cause of bad figures before what follows from it."""

import numpy as np
import pytest
from report_samples import baseline, change, figure
from verdicts import found, losses, put, reached, steps

MISSED = [[140, 0, 0], [0, 130, 0], [65, 65, 0]]


def answers(confusion):
    return put("evaluation.details.tuned.classification.baseline", baseline(confusion))


def counts(*of_each):
    return put("facts.labels.counts", list(of_each))


def leading(told):
    return told.findings[0].source, told.findings[0].level


@pytest.mark.parametrize(
    ("confusion", "trained", "validated", "first"),
    [
        # Nearly what the shares of the classes have as their loss, and still falling.
        ([[380, 0, 0], [10, 0, 0], [10, 0, 0]], (1520, 40, 40), (0.30, 0.27, 0.25, 0.235, 0.22), "unanswered-classes"),
        (MISSED, (790, 790, 20), (0.6, 0.5, 0.4, 0.3, 0.2), "unanswered-classes"),
        (MISSED, (540, 530, 530), (0.6, 0.5, 0.4, 0.3, 0.2), "learning-curve"),  # it may only need more time
    ],
)
def test_longer_training_does_not_lead_where_the_missed_classes_are_rare(verdict, confusion, trained, validated, first):
    told = verdict(answers(confusion), counts(*trained), losses(*((x, x) for x in validated)),
                   put("recipe.task.class_weights", None))  # fmt: skip
    assert "learning-curve" in {one.source for one in told.findings}
    assert leading(told) == (first, "alarm")


def test_over_fitting_and_unstable_training_explain_missed_classes(verdict):
    risen = losses((0.6, 0.6), (0.3, 0.3), (0.5, 0.2), (0.6, 0.1), (0.8, 0.05))
    told = verdict(answers(MISSED), risen, put("recipe.train.keep_best", False), put("training.best_step", 100))
    assert leading(told) == ("over-fitted-weights", "alarm")
    assert [one.explained_by for one in found(told, "classes")] == ["over-fitted-weights"]
    unstable = steps(*np.interp(np.arange(100), (0, 30, 60, 99), (2.0, 9.0, 0.5, 0.4)))
    told = verdict(answers(MISSED), unstable)
    assert (leading(told), "peak" in told.findings[0].figures) == (("learning-curve", "alarm"), True)
    assert leading(verdict(unstable))[0] == "better-than-base"


@pytest.mark.parametrize(("n", "level"), [(20, "note"), (40, "good")])
def test_headline_names_a_small_test_split_after_the_figures(verdict, n, level):
    told = verdict(put("evaluation.tuned.accuracy", figure(0.93, 0.1, n)))
    assert [one.source for one in told.findings[:2]] == ["better-than-base", "held-out-split"]
    assert (told.level, told.quality.level) == (level, level)
    assert told.headline.startswith("Accuracy 93 %, base 65 %: better")


def test_headline_names_a_partial_first_epoch_after_the_figures(verdict):
    told = verdict(steps(2.4, 2.2, 2.0, 1.8, 1.6, 1.4))
    assert [one.source for one in told.findings[:2]] == ["better-than-base", "learning-curve"]
    assert (told.level, told.quality.explained_by) == ("note", "")
    told = verdict(steps(2.4, 2.2, 2.0, 1.8, 1.6, 1.4), put("training.stopped_early", True))
    assert (told.level, told.findings[0].source) == ("good", "better-than-base")


@pytest.mark.parametrize(("rate", "key"), [(0.3, "stuck"), (1e-3, None)])
def test_a_rate_far_above_the_usual_one_is_not_raised(verdict, rate, key):
    def not_learned(files):
        files["metrics"] = [line for line in files["metrics"] if "loss" in line]
        files["evaluation"]["difference"] = {"accuracy": change(0.0, better=None)}
        files["evaluation"]["training"]["difference"] = {"accuracy": change(0.0, better=None)}

    flat = steps(*(2.77 + 0.01 * (i % 3) for i in range(100)))
    (one,) = found(verdict(flat, not_learned, put("recipe.train.learning_rate", rate)), "learning")
    assert [name for name in ("stuck",) if name in one.figures] == [key] * bool(key)
    assert (one.figures["rate"] < rate) == bool(key)


@pytest.mark.parametrize(("kept", "stuck"), [(20, False), (100, True)])
def test_what_was_learnt_by_heart_after_the_kept_weights_is_not_stuck(verdict, kept, stuck):
    told = verdict(
        losses((0.70, 0.65), (0.71, 0.6), (0.72, 0.5), (0.73, 0.4), (0.74, 0.3)),
        put("training.best_step", kept),
        put("recipe.train.keep_best", True),
        put("evaluation.training.tuned", {"drift": figure(0.5)}),
        put("evaluation.difference", {}),
        reached(figures={"drift": 0.6}),
    )
    assert any("stuck" in one.figures for one in told.findings) == stuck


@pytest.mark.parametrize(
    ("augment", "plain", "named"),
    [([{"name": "flip"}], 2.0, True), ([{"name": "flip"}], 0.2, False), ([], 2.0, False)],
)
def test_augmenters_that_are_learnt_instead_of_the_data_lead(verdict, augment, plain, named):
    course = losses(*((x, plain) for x in (2.1, 2.1, 2.0, 2.0, 2.0)))
    told = verdict(course, put("recipe.augment", augment))
    assert (leading(told) == ("augmented-training", "alarm")) == named
    assert any(one.source == "augmented-training" for one in told.findings) == named


@pytest.mark.parametrize("warmup", [0.1, 1000])
def test_a_warm_up_of_all_steps_leads_where_more_training_would_pay(verdict, warmup):
    falling = losses(*((x, x) for x in (1.0, 0.9, 0.8, 0.65, 0.5)))
    told = verdict(falling, put("recipe.train.warmup", warmup))
    assert [one.figures.get("warmup") for one in told.findings if one.source == "learning-curve"] == [
        1000 if warmup == 1000 else None
    ]
    assert (leading(told) == ("learning-curve", "alarm")) == (warmup == 1000)


def test_a_warm_up_longer_than_the_run_leads_though_the_model_learnt(verdict):
    assert leading(verdict(put("recipe.train.warmup", 1000))) == ("learning-curve", "alarm")
