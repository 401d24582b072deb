"""What a verdict says of training: too little, none, or over-fitted."""

import pytest
from report_samples import change, figure
from verdicts import found, losses, put, reached


@pytest.mark.parametrize(
    ("points", "level"),
    [
        (((0.6, 0.6), (0.3, 0.3), (0.33, 0.2), (0.34, 0.1), (0.36, 0.05)), "note"),  # earlier weights are kept
        (((0.6, 0.6), (0.3, 0.3), (0.33, 0.4), (0.34, 0.5), (0.36, 0.6)), None),  # both rise
        (((0.6, 0.6), (0.3, 0.3), (0.301, 0.2), (0.302, 0.1), (0.303, 0.05)), None),  # by a wobble
    ],
)
def test_what_counts_as_over_fitting(verdict, points, level):
    told = found(verdict(losses(*points), put("training.best_step", 40)), "over-fitting")
    assert [f.level for f in told if f.source == "over-fitted-weights"] == ([level] if level else [])


def test_the_gap_to_training_examples_is_newcombes(verdict):
    told = verdict(
        put("evaluation.tuned.accuracy", figure(0.7)), put("evaluation.training.tuned.accuracy", figure(1.0, 0))
    )
    (gap,) = found(told, "over-fitting", "alarm")
    assert [gap.figures["gap"][key] for key in ("value", "low", "high")] == pytest.approx([0.3, 0.27, 0.33])


def on_training(metric, base, tuned, learned):
    """Return a change: one metric's figures on training examples, and how it changed on them."""

    def spoil(files):
        training = files["evaluation"]["training"]
        training["base"][metric], training["tuned"][metric] = base, tuned
        training["difference"] = {metric: learned}

    return spoil


def test_a_gap_that_the_base_has_as_well_is_no_over_fitting(verdict):
    held = put("evaluation.base.accuracy", figure(0.4)), put("evaluation.tuned.accuracy", figure(0.7))
    change_of = put("evaluation.difference.accuracy", change(0.3))
    easy = on_training("accuracy", figure(0.7), figure(0.97), change(0.27))
    (told,) = found(verdict(*held, change_of, easy), "over-fitting")
    assert told.level == "note"
    assert told.text.startswith("Better on training examples than on new ones, as the base is already: accuracy 0.970 ")
    base = "and was 0.300 (95 % interval 0.258 to 0.342) for the base, so training did not widen it beyond chance."
    assert told.text.endswith(base)
    learnt = on_training("accuracy", figure(0.5), figure(0.97), change(0.47))
    (told,) = found(verdict(*held, change_of, learnt), "over-fitting", "alarm")
    assert told.text.endswith(", and was 0.100 (95 % interval 0.058 to 0.142) for the base.")
    assert told.figures["grown"]["low"] > 0.1


def test_what_a_base_without_a_gap_scatters_by_explains_none(verdict):
    """A fresh head guesses, on few examples: the difference of both gaps would be chance where the gap is not."""
    held = put("evaluation.base.accuracy", figure(0.5, 0.1)), put("evaluation.tuned.accuracy", figure(0.78, 0.08))
    learnt = on_training("accuracy", figure(0.5, 0.14), figure(1.0, 0.02), change(0.5, 0.14))
    (told,) = found(verdict(*held, learnt), "over-fitting", "alarm")
    assert told.text.startswith("Much better on training examples than on new ones: ")
    assert told.text.endswith("the gap is 0.22 (95 % interval 0.14 to 0.30).")
    assert told.figures["grown"] is None


@pytest.mark.parametrize(
    ("base", "learned", "level"),
    [(4.0, -2.6, "alarm"), (2.0, -1.5, "alarm"), (2.0, -0.6, "note"), (2.2, -0.8, "note"), (0.7, -0.6, "alarm")],
)
def test_losses_are_compared_with_the_base_by_their_ratio(verdict, base, learned, level):
    def spoil(files):
        files["evaluation"]["metrics"] = {"loss": {"label": "loss", "higher_is_better": False, "evaluator": "language"}}
        for part in ("base", "tuned", "difference"):
            files["evaluation"][part] = {}
        files["evaluation"] |= {"paired": None, "slices": {}, "probes": []}
        files["evaluation"]["base"]["loss"], files["evaluation"]["tuned"]["loss"] = figure(4.0), figure(3.4)
        files["evaluation"]["difference"]["loss"] = change(-0.6)
        figures = {"base": {"loss": figure(base)}, "tuned": {"loss": figure(base + learned)}}
        files["evaluation"]["training"] = {"n": 200, **figures, "difference": {"loss": change(learned)}}

    told = [f for f in found(verdict(spoil), "over-fitting") if f.source == "generalisation-gap"]
    assert [f.level for f in told] == [level]


NO_BETTER = [put(f"evaluation.difference.{metric}", change(0, better=None)) for metric in ("accuracy", "macro_f1")]


CALM = [1.0 - 0.001 * i for i in range(20)]


WILD = [0.6, 4.6, 4.2, 1.1, 3.9, 0.8, 4.4, 2.1, 0.7, 4.5] * 2


@pytest.mark.parametrize(
    ("curve", "spoil", "told"),
    [
        (CALM[:9], NO_BETTER, "The training loss hardly fell: from 0.999 to 0.993 in 9 steps."),
        (CALM, NO_BETTER, "The training loss hardly fell: "),
        # The metric that decides is a constant's, and another got better.
        (CALM, [reached(figures={"drift": 0.6})], "The training loss hardly fell: "),
        (CALM, [], None),
        (WILD[:9], NO_BETTER, None),  # nothing can be told from batches that differ so much
    ],
)
def test_too_little_training_is_told_where_the_model_is_of_no_use_and_the_losses_show_it(verdict, curve, spoil, told):
    texts = [finding.text for finding in found(verdict(steps(*curve), *spoil), "learning")]
    assert [text.startswith(told or "") for text in texts] == ([True] if told else [])


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.95, True), (0.4, False)],
)
def test_that_a_fresh_head_guesses_worse_is_no_learning(verdict, share, told):
    figures = put("evaluation.details.tuned.classification.baseline.figures", {"accuracy": share, "macro_f1": share})
    findings = found(verdict(steps(*CALM), put("facts.new_modules", ["classifier"]), figures), "learning")
    assert [finding.level for finding in findings] == (["alarm"] if told else [])


@pytest.mark.parametrize(
    ("step", "told"),
    [(0.0005, "its training loss hardly fell ("), (-0.0005, "its training loss did not fall (")],
)
def test_a_loss_that_fell_within_the_noise_is_not_said_to_have_stood_still(verdict, step, told):
    (one,) = did_not_learn(verdict(flat(step), losses(*((0.69 - x / 500, None) for x in range(5)))))
    assert told in one.text
    assert ("a fall of less than 0.0" in one.text) == (step > 0)


def test_a_validation_loss_that_fell_is_learning_whatever_noisy_batches_say(verdict):
    assert not did_not_learn(verdict(flat(0), losses(*((0.69 - x / 50, None) for x in range(5)))))


def flat(step):
    def spoil(files):
        for i, line in enumerate(one for one in files["metrics"] if "loss" in one):
            line["loss"] = 0.69 - step * i / 10 + 0.02 * (i % 2)
        files["evaluation"]["difference"] = {"accuracy": change(0.0, better=None)}

    return spoil


def did_not_learn(told):
    return [f for f in found(told, "learning") if f.text.startswith("The model did not learn")]


def steps(*values):
    """Return a change of the training losses, a step each."""

    def spoil(files):
        line = next(one for one in files["metrics"] if "loss" in one)
        files["metrics"] = [line | {"step": i, "loss": loss} for i, loss in enumerate(values, 1)]

    return spoil
