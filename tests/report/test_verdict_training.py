"""What a verdict says of training: too little, none, or over-fitted."""

import numpy as np
import pytest
from report_samples import change, figure
from verdicts import found, losses, put, reached, steps


@pytest.mark.parametrize(
    ("points", "level"),
    [
        (((0.6, 0.6), (0.3, 0.3), (0.33, 0.2), (0.34, 0.1), (0.36, 0.05)), "good"),  # earlier weights are kept
        (((0.6, 0.6), (0.3, 0.3), (0.33, 0.4), (0.34, 0.5), (0.36, 0.6)), None),  # both rise
        (((0.6, 0.6), (0.3, 0.3), (0.301, 0.2), (0.302, 0.1), (0.303, 0.05)), None),  # by a wobble
    ],
)
def test_what_counts_as_over_fitting(verdict, points, level):
    told = found(verdict(losses(*points), put("training.best_step", 40)), "over-fitting")
    assert [f.level for f in told if f.source == "over-fitted-weights"] == ([level] if level else [])


LATE = put("training.best_step", 20)
"""A change: the kept weights are not those of the lowest validation loss."""


def test_a_gap_is_no_alarm_while_validation_falls_and_new_examples_have_most_of_what_was_gained(verdict):
    held = put("evaluation.base.accuracy", figure(0.3)), put("evaluation.tuned.accuracy", figure(0.83))
    learnt = on_training("accuracy", figure(0.3), figure(1.0, 0.01), change(0.7))
    for spoil, level in ((), "note"), ((LATE,), "alarm"):
        told = verdict(*held, put("evaluation.difference.accuracy", change(0.53)), learnt, *spoil)
        assert [f.level for f in found(told, "over-fitting")] == [level]


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
    assert told.text.startswith("Better on training examples than on new ones, as the base was before: accuracy 0.970 ")
    base = "and was 0.300 (95 % interval 0.258 to 0.342) for the base, so training did not widen it beyond chance."
    assert told.text.endswith(base)
    learnt = on_training("accuracy", figure(0.5), figure(0.97), change(0.47))
    (told,) = found(verdict(*held, change_of, learnt, LATE), "over-fitting", "alarm")
    assert told.text.endswith(", and was 0.100 (95 % interval 0.058 to 0.142) for the base.")
    assert told.figures["grown"]["low"] > 0.1


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
        (
            CALM[:9],
            NO_BETTER,
            "Train longer: 9 steps went over",
        ),
        (CALM, NO_BETTER, "Train longer or raise the learning rate"),
        # The metric that decides is a constant's, and another got better.
        (CALM, [reached(figures={"drift": 0.6})], "Train longer: 20 steps went over 20 % of the training examples"),
        (CALM, [], None),
        (WILD[:9], NO_BETTER, "Train longer: 9 steps went over"),  # batches differ too much to tell more
        (WILD[:10], NO_BETTER, None),
    ],
)
def test_too_little_training_is_reported_where_the_model_is_of_no_use_and_the_losses_show_it(
    verdict, curve, spoil, told
):
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


def not_learned(files):
    """Change a run: no figure got better, of held-out or of training examples, and there was no validation."""
    files["metrics"] = [line for line in files["metrics"] if "loss" in line]
    files["evaluation"]["difference"] = {"accuracy": change(0.0, better=None)}
    files["evaluation"]["training"]["difference"] = {"accuracy": change(0.0, better=None)}


def learning(told):
    return [(f.level, f.text.split(":")[0]) for f in found(told, "learning")]


def course(*levels, noise=0.02, count=100):
    """Return training losses on a line through some levels, every other one higher."""
    line = np.interp(np.linspace(0, len(levels) - 1, count), range(len(levels)), levels)
    return [float(level + noise * (i % 2)) for i, level in enumerate(line)]


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (course(0.69, 0.69), [("alarm", "Train longer or raise the learning rate (0.0002, to 0.002)")]),
        (
            course(0.69, 0.685, noise=0.1),
            [("alarm", "Train longer or raise the learning rate (0.0002, to 0.002)")],
        ),  # a fall of 10 % is ruled out
        (course(0.69, 0.80), [("alarm", "Lower the learning rate (0.0002, to 2e-05)")]),
        (course(3.51, 3.0, noise=0.9, count=40), []),  # cannot be told from noise: no finding
        (course(3.5, 2.9), [("note", "Train longer")]),
        # It came apart, and came back to where it began.
        (course(2.4, 41.7, 2.7, 2.6, 2.5), [("alarm", "Lower the learning rate (0.0002, to 2e-05)")]),
        (course(0.01, 0.01, 0.4, 0.01, 0.01), []),  # hard batches are no explosion
    ],
)
def test_what_the_training_loss_says_where_no_figure_shows_learning(verdict, curve, said):
    assert learning(verdict(steps(*curve), not_learned)) == said


@pytest.mark.parametrize(("last", "said"), [(0.20, True), (0.27, True), (0.295, False), (0.31, False)])
def test_a_validation_loss_that_still_falls_at_the_end_asks_for_longer_training(verdict, last, said):
    told = verdict(losses((0.6, 0.6), (0.5, 0.5), (0.4, 0.4), (0.3, 0.3), (last, 0.2)))
    assert [text.startswith("Train longer") for _, text in learning(told)] == [True] * said


@pytest.mark.parametrize("validated", [(100,), (98, 100)])  # once, or once more at the end a step or two behind
@pytest.mark.parametrize(
    ("figures", "level"),
    [({"drift": 0.3}, "note"), ({"drift": 0.6}, "alarm")],  # of use already, or no better than a constant answer
)
def test_a_training_loss_that_still_falls_asks_for_longer_training_where_validation_has_no_course(
    verdict, figures, level, validated
):
    def once(files):
        files["metrics"] += [{"step": step, "epoch": 5, "validation_loss": 0.3} for step in validated]

    told = verdict(steps(*course(2.4, 1.2)), once, reached(figures=figures))
    assert learning(told) == [(level, "Train longer")]
    assert set(found(told, "learning")[0].figures) >= {"steps", "before", "last"}


def test_a_validation_loss_near_that_of_guessing_asks_for_longer_training(verdict):
    near = losses((1.10, 1.1), (1.09, 1.09), (1.085, 1.08), (1.08, 1.07), (1.075, 1.07))
    assert learning(verdict(near)) == [("note", "Train longer")]  # log 3 is 1.099
    assert learning(verdict(losses((0.6, 0.6), (0.5, 0.5), (0.45, 0.4), (0.44, 0.3), (0.435, 0.2)))) == []


@pytest.mark.parametrize(
    ("counts", "last", "said"),
    [((380, 10, 10), 0.22, True), ((380, 10, 10), 0.12, False), ((134, 133, 133), 0.22, False)],
)
def test_a_validation_loss_is_compared_with_that_of_the_shares_of_classes(verdict, counts, last, said):
    """Of 95 to 2.5 to 2.5, a model that knows the shares alone has 0.233 and not log 3."""
    held = losses(*((last + 0.004 * i, 0.3) for i in (4, 3, 2, 1, 0)))
    told = verdict(held, put("facts.labels.counts", list(counts)))
    assert [text for _, text in learning(told)] == ["Train longer"] * said
    weighted = put("recipe.task", {"name": "text-classification", "class_weights": "balanced"})
    assert not learning(verdict(held, put("facts.labels.counts", list(counts)), weighted))


def test_fewer_than_ten_steps_of_one_pass_ask_for_longer_training_whatever_they_reached(verdict):
    assert learning(verdict(steps(*course(2.4, 1.2, count=6)))) == [("note", "Train longer")]


def test_few_steps_are_the_cause_where_the_model_is_no_better_than_a_constant(verdict):
    (told,) = found(
        verdict(steps(*course(2.4, 2.2, noise=0.5, count=10)), reached(figures={"drift": 0.6})), "learning", "alarm"
    )
    assert told.text.startswith("Train longer: 10 steps went over 10 % of the training examples")
    assert "Guessing evenly" not in told.text  # that metric has no labels
    gap = put("evaluation.tuned.accuracy", figure(0.4)), put("evaluation.training.tuned.accuracy", figure(0.48))
    worse = put("evaluation.details.tuned.classification.baseline.figures", {"accuracy": 0.9})
    assert not found(verdict(*gap, worse), "over-fitting")  # of a model that is of no use


@pytest.mark.parametrize(
    ("curve", "figures", "key"),
    [
        (course(2.5, 3.6, 2.4, 2.1, 2.1), {"drift": 0.6}, "peak"),  # no use, and it began by rising
        (course(2.5, 3.6, 2.4, 2.1, 2.1), {"drift": 0.3}, None),
        (course(2.5, 2.1, 2.1, 2.1, 2.1), {"drift": 0.6}, "stuck"),  # it fell to a constant answer's loss and stayed
        (course(2.5, 2.1, 2.1, 2.1, 2.1), {"drift": 0.3}, None),
        ((0.71,), {"drift": 0.6}, None),  # one step: nothing fell
        (course(0.7, 0.71, noise=0.001, count=200), {"drift": 0.3}, None),  # surely a rise, and of nothing
    ],
)
def test_a_rate_that_is_too_high_is_known_by_a_rise_or_by_getting_stuck(verdict, curve, figures, key):
    told = found(verdict(steps(*curve), not_learned, reached(figures=figures)), "learning", "alarm")
    lower = [one for one in told if "ower the learning rate" in one.text]
    assert [key in one.figures for one in lower] == [True] * bool(key)


@pytest.mark.parametrize(("later", "peaks"), [((0.5, 1.6), False), ((1.1, 1.2), True)])
def test_squared_errors_of_few_numbers_vary_without_being_unstable(verdict, later, peaks):
    told = found(verdict(steps(1.2, 2.6, 0.6, 2.4, *later * 30), reached(figures={"drift": 0.6})), "learning")
    assert any("peak" in one.figures for one in told) == peaks


@pytest.mark.parametrize(
    ("moved", "passes", "falls", "vain"),
    [(0.03, 4, 0.0, True), (0.0, 4, 0.0, False), (0.03, 1, 0.0, False), (0.03, 4, 0.1, False)],
)
def test_answers_that_change_while_the_loss_stays_ask_whether_they_belong_to_the_inputs(
    verdict, moved, passes, falls, vain
):
    """Not where the rate is so low that nothing changes, nor where the loss still falls, if by little."""
    still = steps(*(2.77 + 0.01 * (i % 3) - falls * i / 100 for i in range(100)))
    unchanged = put("evaluation.difference.accuracy", change(0.0, moved, better=None, p=0.9))

    def examples(files):
        for line in files["metrics"]:
            line |= {"examples": 16 * passes} if "loss" in line else {}

    told = found(verdict(still, not_learned, unchanged, examples), "learning")
    assert any("stuck" in one.figures for one in told) == vain


def test_a_rate_is_too_high_where_the_loss_left_that_of_the_base_at_once_and_stayed_above(verdict):
    """After three steps the loss was 20 times that of the base, which was taken for where it began."""
    worse = put("evaluation.difference.accuracy", change(-0.3, better=False))
    told = found(verdict(steps(7.6, 23, 150, 70, 40, 31, 92, 50, *[11] * 32), worse), "learning", "alarm")
    assert [(one.figures["first"], one.figures["peak"] > 80) for one in told] == [(7.6, True)]


@pytest.mark.parametrize(
    ("highest", "told"), [(9.5, "Lower the learning rate (0.0002, to 2e-05)"), (3.2, "Train longer")]
)
def test_a_rise_in_the_first_steps_is_known_where_the_loss_of_guessing_is(verdict, highest, told):
    """Of a model that is of use in the end, the first steps were taken for the level that it began at."""
    curve = (2.46, 4.1, highest, highest, highest, 3.0, *np.linspace(3.0, 0.4, 94))
    assert learning(verdict(steps(*curve))) == [("note", told)]


@pytest.mark.parametrize(("figures", "said"), [({"mse": 0.64}, "Lower the learning rate"), ({"drift": 0.3}, "Train")])
def test_a_rise_in_the_first_steps_is_known_where_the_error_of_the_mean_is(verdict, figures, said):
    curve = (11.0, 2.8, 29.5, 15.7, 76.5, 15.5, 0.2, *np.linspace(12, 0.5, 93))
    metric = next(iter(figures))
    told = verdict(steps(*curve), reached(metric=metric, figures=figures))
    assert [text.startswith(said) for _, text in learning(told)] == [True]
