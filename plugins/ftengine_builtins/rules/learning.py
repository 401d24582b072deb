"""Rules about the course of training: unstable, too short, or without effect."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Level, Rule
from ftengine.text import capitalized, counted, ends, has_value, number, percent
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.number_targets import NumberTargets
from ftengine_builtins.rules.baseline import OF_NO_USE, passes
from ftengine_builtins.rules.classes import MISSED, are_rare, rarely_answered, trained_on
from ftengine_builtins.rules.drawn_rewards import drawn_steps
from ftengine_builtins.rules.fitting import learns_by_heart
from ftengine_builtins.rules.rates import is_far_above_usual, lower_rate, raised_rate
from ftengine_builtins.rules.threshold import knows_no_labels, no_better_than_a_constant, threshold_of
from ftengine_builtins.rules.trend import FEW_STEPS, trend

LEAST_FALL = 0.05
"""Relative fall of the validation loss that counts as learning; at the end of a run it means that more training would
help. Between two validations of a sound run the loss varies by 1–3 % (MiniLM on BBC news)."""

LEAST = 0.02
"""Changes of the loss below this are ignored: 0.060 to 0.073 on 54 examples is one example."""

HARDLY = 0.10
"""A model that is not better was trained too little if the training loss, with its noise, fell by less than this."""

MANY_PASSES = 3
"""From this many passes on, a falling training loss may be over-fitting, which only validation shows."""

RISE, LEFT, PEAK, PEAK_STEPS = 1.25, 2.0, 3.0, 3
"""How many times its starting level the training loss reaches on average of so many steps in a row where training came
apart: RISE where the model is of no use, PEAK where it is. With labels it also has to be above what guessing evenly
gives: one hard batch is many times a loss near 0. LEFT times the first loss and that of a constant answer, come down to
half of it later, is such a peak too: runs at rates 100 times too high have 3.2 and more, all others at most 1.3."""

OF_NUMBERS = 2.0
"""Squared errors of few numbers vary: standard deviations of the losses' logarithm that a peak is above its start."""

LEARNT = 0.25
"""Of the loss of guessing evenly: where the training loss came down to less, the training examples are learnt, whatever
it went through before, so that a model of no use has another reason."""


class LearningCurve(Rule):
    """Finds training that was unstable, too short or without effect, and whether longer training would help."""

    name = "learning-curve"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        if drawn_steps(run):
            return  # the loss of drawn answers is near 0 at every step, whatever is learnt
        finding = _came_apart(run) or _first_pass(run) or _stayed(run) or _unfinished(run) or _stuck(run)
        if run.recipe.train.warmup >= run.training.planned_steps > 1 and "peak" not in getattr(finding, "figures", ()):
            yield _warmup(run, finding)
        elif finding is not None:
            yield finding


def _warmup(run: RunRecords, effect: Finding | None) -> Finding:
    """Return that warm-up is longer than the run, before what else was found about too little training."""
    warmup = run.recipe.train.warmup
    brief = f"shorten train.warmup ({warmup:g}): it takes all {run.training.planned_steps:,} steps, so the learning "
    brief += "rate is reached at the last one alone"
    if effect is None:
        return _finding("alarm", brief, {"warmup": warmup}, sure=True)
    brief += f"; {effect.brief.partition(': ')[2] or effect.brief}"
    update = {"text": f"{capitalized(brief)}.", "brief": brief, "level": "alarm"}
    return effect.model_copy(update={**update, "figures": {**effect.figures, "warmup": warmup}})


def _finding(level: Level, brief: str, figures: dict[str, Any], *, more: str = "", sure: bool = False) -> Finding:
    """Return a finding about training.

    Args:
        more: further sentences after the brief one.
        sure: the model is useless for this reason, which explains other findings about its answers.
    """
    explains = (*OF_NO_USE, "quality", "learning", "slices") if sure else ("quality",)
    text = f"{capitalized(brief)}.{more}"
    return Finding(kind="learning", level=level, text=text, brief=brief, explains=explains, figures=figures)


def _came_apart(run: RunRecords) -> Finding | None:
    """Find a training loss that rose, or had a peak far above its start, even if it fell afterwards."""
    if len(run.steps) < 2 * PEAK_STEPS:
        return None
    line = trend(run.steps)
    losses = line.losses
    useless, rate = no_better_than_a_constant(run) or _got_worse(run), run.recipe.train.learning_rate
    last = fmean(losses[-PEAK_STEPS:])
    useless = useless and last >= LEARNT * _even_guess(run)
    # The first loss belongs to the initial weights; a few hard batches may follow it in a useful model.
    means = [fmean(losses[i : i + PEAK_STEPS]) for i in range(len(losses) - PEAK_STEPS + 1)]
    guess, count, least = _even_guess(run), max(PEAK_STEPS, len(losses) // 20), PEAK
    if useless:
        count, least = 1, RISE
    elif (constant := guess or _error_of_the_mean(run)) and max(means[1:]) >= LEFT * max(losses[0], constant, last):
        count, least = 1, LEFT
    start, peak = median(losses[:count]), max(means[count:])
    rose = len(losses) >= FEW_STEPS and line.low > max(LEAST, LEAST_FALL * line.first)
    if not rose and (peak < least * start or peak < start + least - 1 or peak < guess):
        return None
    if not rose and not guess and peak < start * math.exp(OF_NUMBERS * line.noise):
        return None
    at = run.steps[means.index(peak, count)].step
    came = f" and came down to {number(last, 3)}" if last < peak / 2 else ""
    course = f"from {number(start, 3)} to {number(peak, 3)} at step {at:,}{came}"
    if peak < least * start:  # there is no peak, but the whole curve rises
        course = f"from {number(line.first, 3)} at the beginning to {number(line.last, 3)} at the end"
    brief = f"lower the learning rate ({rate:g}, to {lower_rate(run):g}): training was unstable, its loss rose {course}"
    sure = useless or not _learned(run) or _is_early(run)
    if not sure and last < start and _has_outliers(run):
        return None  # a batch with an outlier among the numbers to be learnt
    figures = {"first": start, "peak": peak, "last": last, "rate": lower_rate(run)}
    return _finding("alarm" if sure else "note", brief, figures, sure=sure)


def _has_outliers(run: RunRecords) -> bool:
    """Return whether a few target numbers outweigh all others: their batches have far larger losses."""
    return any(f.source == NumberTargets.name and "most" in f.figures for f in run.audit.findings)


def _first_pass(run: RunRecords) -> Finding | None:
    """Find training that ended within its first pass, if the model is useless, steps were few, or the loss still fell.

    It is an alarm if the model is useless, or hardly ever answers some classes.
    """
    steps, useless = run.steps, no_better_than_a_constant(run)
    if passes(run) >= 1 or not steps or (useless and len(steps) < 2):
        return None
    if not useless and not ended_early(run):
        return None
    last = fmean(step.loss for step in steps[-max(1, len(steps) // 3) :])
    brief = f"train longer: {counted(len(steps), 'step')} went over {percent(passes(run))} of the training examples; "
    brief += f"the training loss is {number(last, 3)}"
    figures = {"steps": len(steps), "passes": passes(run), "last": last}
    return _finding("alarm" if _is_early(run) else "note", brief, figures, more=_guess(run), sure=useless)


def ended_early(run: RunRecords) -> bool:
    """Return whether training ended within its first pass, after few steps or with a falling loss."""
    steps = run.steps
    if passes(run) >= 1 or not steps or run.training.stopped_early:
        return False
    return len(steps) < FEW_STEPS or _falls(steps, steps)


def _stayed(run: RunRecords) -> Finding | None:
    """Find a useless model whose training loss hardly changed."""
    useless, steps, rate = no_better_than_a_constant(run), run.steps, run.recipe.train.learning_rate
    if len(steps) < 3 or (_learned(run) and not useless):
        return None
    line = trend(steps)
    if not has_value(run.evaluation.difference.get(run.headline_metric or "")) or line.most_fall >= HARDLY:
        return None
    stayed = "hardly fell" if line.high < 0 else "did not fall"
    course = f"in {counted(len(steps), 'step')}, the training loss {stayed}, from {number(line.first, 3)} to "
    course += number(line.last, 3)
    figures = {"steps": len(steps), "passes": passes(run), "first": line.first, "last": line.last}
    figures["change"] = {"low": line.low, "high": line.high}
    level: Level = "alarm" if useless or line.high >= 0 else "note"
    if _changed_in_vain(run):
        lower = lower_rate(run)
        brief = f"check that inputs and answers belong together, or lower the learning rate ({rate:g}, to {lower:g}): "
        brief += f"{course}, though training changed the answers"
        return _finding("alarm", brief, {"stuck": line.last, **figures, "rate": lower}, sure=useless)
    if is_far_above_usual(run):
        brief = f"lower the learning rate ({rate:g}, to {lower_rate(run):g}): {course}"
        return _finding(level, brief, {"stuck": line.last, **figures, "rate": lower_rate(run)}, sure=useless)
    figures["rate"] = raised_rate(run)
    brief = f"train longer or raise the learning rate ({rate:g}, to {raised_rate(run):g}): {course}"
    more = f"{_guess(run)} If that does not help, the inputs may not determine the answers."
    return _finding(level, brief, figures, more=more, sure=useless)


def _changed_in_vain(run: RunRecords) -> bool:
    """Return whether training of several passes changed the answers although its loss stayed the same in the last half.

    Answers changed if, for all figures of quality, differences from the base vary over examples by at least half as
    much as the figures. They do not change at a far too low rate; at a slightly too low one the loss still falls.
    """
    evaluation, last = run.evaluation, run.steps[len(run.steps) // 2 :]
    if passes(run) < MANY_PASSES or len(last) < FEW_STEPS or trend(last).high < 0:
        return False
    widths = [
        (change[1] - change[0], figure[1] - figure[0])
        for name, declared in evaluation.metrics.items()
        if declared.kind == "quality"
        if (change := ends(evaluation.difference.get(name))) and (figure := ends(evaluation.tuned.get(name)))
    ]
    return bool(widths) and all(change >= figure / 2 > 0 for change, figure in widths)


def _stuck(run: RunRecords) -> Finding | None:
    """Find a model that is useless, even on training examples, although the loss fell."""
    training, threshold, points = run.evaluation.training, threshold_of(run), run.validations
    if threshold is None or not no_better_than_a_constant(run) or knows_no_labels(run) or passes(run) < 1:
        return None
    if len(run.steps) < PEAK_STEPS or trend(run.steps).high >= 0 or threshold.beaten(pooled=False):
        return None  # the loss did not surely fall, or scores are better than answers
    figure = training.tuned.get(threshold.metric) if training is not None else None
    last = fmean(step.loss for step in run.steps[-PEAK_STEPS:])
    if figure is not None and (within := ends(figure)) is not None:
        higher = run.evaluation.metrics[threshold.metric].higher_is_better
        level = threshold.baseline.figures[threshold.metric]
        by_heart = within[0] > level if higher else within[1] < level
    else:
        by_heart = bool(points) and not is_weighted(run) and last < points[-1].validation_loss / 2
    if by_heart or (bool(points) and run.kept_step < points[-1].step and learns_by_heart(run)):
        return None
    brief = "check that inputs and answers belong together, or lower the learning rate "
    brief += f"({run.recipe.train.learning_rate:g}, to {lower_rate(run):g}): the training loss fell to "
    brief += f"{number(last, 3)} in {counted(len(run.steps), 'step')}"
    figures = {"stuck": last, "rate": lower_rate(run)}
    return _finding("alarm", brief, figures, more=" The model is nevertheless no better than a constant answer.")


def _labels(run: RunRecords) -> int:
    """Return the number of labels among which the model chooses one; 0 for other tasks."""
    threshold = threshold_of(run)
    labels = len(threshold.baseline.classes) if threshold is not None else 0
    return labels if labels > 1 else 0


def _guess(run: RunRecords) -> str:
    """Return a sentence on the loss of guessing evenly; "" without labels."""
    labels = _labels(run)
    return f" Guessing evenly among {labels:,} labels has a loss of {number(math.log(labels), 3)}." if labels else ""


def _even_guess(run: RunRecords) -> float:
    """Return the loss of guessing evenly among the labels; 0 without labels."""
    return math.log(_labels(run) or 1)


def _guess_by_shares(run: RunRecords) -> float:
    """Return the loss of predicting each label with its share of the training examples; 0 without labels.

    If rare classes are weighted, or the shares are unknown, it is the loss of guessing evenly.
    """
    labels = run.trained.labels
    if is_weighted(run) or labels is None or not labels.counts or not _labels(run):
        return _even_guess(run)
    total = sum(labels.counts)
    return -sum(count / total * math.log(count / total) for count in labels.counts if count)


def _error_of_the_mean(run: RunRecords) -> float:
    """Return the loss of always predicting the mean; 0 if answers are not numbers."""
    threshold, labels = threshold_of(run), run.trained.labels
    std = labels.std if labels is not None and labels.std else 1.0
    return threshold.baseline.figures.get("mse", 0.0) / std**2 if threshold is not None else 0.0


def is_weighted(run: RunRecords) -> bool:
    """Return whether the training loss weights rare classes, which validation losses do not."""
    return run.recipe.task.get("class_weights") is not None or run.recipe.train.sampling != "shuffle"


def _learned(run: RunRecords) -> bool:
    """Return whether learning shows on held-out examples, on training examples or in validation losses."""
    training = run.evaluation.training
    on_training = () if training is None or run.trained.new_modules else training.difference.values()
    return _got_better(run) or any(change.better for change in on_training) or _fell(run.validations)


def _got_better(run: RunRecords) -> bool:
    """Return whether a figure of quality shows learning; being better than an untrained head does not."""
    threshold, evaluation = threshold_of(run), run.evaluation
    if run.trained.new_modules and threshold is not None:
        beaten = [*threshold.beaten(pooled=True), *threshold.beaten(pooled=False)]
        return not no_better_than_a_constant(run) or bool(beaten)
    return any(d.better for name, d in evaluation.difference.items() if evaluation.metrics[name].kind == "quality")


def _got_worse(run: RunRecords) -> bool:
    """Return whether the headline metric got worse than the base's, unless the base has an untrained head."""
    difference = run.evaluation.difference.get(run.headline_metric or "")
    return not run.trained.new_modules and difference is not None and difference.better is False


def _fell(points: Sequence[Any]) -> bool:
    """Return whether the validation loss fell; it is less noisy than that of batches, as its examples stay the same."""
    losses = [point.validation_loss for point in points]
    return bool(losses) and losses[0] - min(losses) > max(losses[0] * LEAST_FALL, LEAST)


def _unfinished(run: RunRecords) -> Finding | None:
    """Find that more training would help: a loss was still falling, or is still near that of guessing.

    It is an alarm if the model is useless, or hardly ever answers some classes, which may only need more training.
    """
    if run.training.stopped_early:
        return None
    course = _course(run.validations)
    reason = _validation_falls(course) if len(course) > 1 else _training_falls(run)
    reason = reason or _near_guessing(run)
    if reason is None or _nothing_learnt(run):
        return None
    why, figures = reason
    level: Level = "alarm" if _is_early(run) else "note"
    figures = {"steps": len(run.steps), **figures}
    useless, rare_answers = no_better_than_a_constant(run), rarely_answered(run)
    # Rare classes are a separate cause, which longer training does not cure.
    rare = bool(rare_answers) and are_rare(rare_answers, trained_on(run))
    return _finding(level, f"train longer: {why}", figures, sure=useless and not rare)


def _nothing_learnt(run: RunRecords) -> bool:
    """Return whether the loss only approached that of a constant answer, while scores know nothing of labels.

    This happens with random labels after a few passes; longer training would only over-fit.
    """
    constant = _guess_by_shares(run) or _error_of_the_mean(run)
    if not constant or passes(run) < 1 or not knows_no_labels(run):
        return False
    last = run.validations[-1].validation_loss if run.validations else fmean(x.loss for x in run.steps[-PEAK_STEPS:])
    return last >= (1 - HARDLY) * constant


def _is_early(run: RunRecords) -> bool:
    """Return whether the model is useless, or hardly ever answers classes that are not rare in training."""
    total = threshold.baseline.total if (threshold := threshold_of(run)) is not None else 0
    missed = sum(true for label, true in rarely_answered(run).items() if not are_rare([label], trained_on(run)))
    return no_better_than_a_constant(run) or bool(missed and share_within(missed, total)[0] >= MISSED)


def _course(points: Sequence[Any]) -> list[Any]:
    """Return validations without those just before the last one, such as an epoch's end one step earlier."""
    if not points:
        return []
    *earlier, last = points
    return [*(point for point in earlier if last.step - point.step >= points[0].step / 2), last]


def _validation_falls(points: Sequence[Any]) -> tuple[str, dict[str, Any]] | None:
    before, last = points[-2:]
    old, new = before.validation_loss, last.validation_loss
    least = max(old * LEAST_FALL, LEAST)
    if not old > 0 or new > min(point.validation_loss for point in points) or new > old - least:
        return None
    text = (
        f"the validation loss was still falling at the end, by {percent(1 - new / old)} from step {before.step:,} to "
    )
    return f"{text}{last.step:,}", {"before": old, "last": new}


def _training_falls(run: RunRecords) -> tuple[str, dict[str, Any]] | None:
    """Judge the last half of the training losses, if there are too few validations."""
    last = run.steps[len(run.steps) // 2 :]
    if passes(run) > MANY_PASSES or not _falls(last, run.steps):
        return None
    line = trend(last)
    text = f"the training loss was still falling, from {number(line.first, 3)} to {number(line.last, 3)} in the last "
    return f"{text}{counted(len(last), 'step')}", {"before": line.first, "last": line.last}


def _falls(last: Sequence[Any], steps: Sequence[Any]) -> bool:
    """Return whether the training loss falls in the last steps, beyond its noise and by enough to matter."""
    if len(last) < FEW_STEPS or trend(steps).high >= 0:
        return False
    line = trend(last)
    return line.first > 0 and -line.high / line.first >= LEAST_FALL and line.first - line.last >= LEAST


def _near_guessing(run: RunRecords) -> tuple[str, dict[str, Any]] | None:
    """Compare the last validation loss with that of guessing, if scores carry information about labels."""
    guess, points = _guess_by_shares(run), run.validations
    if not guess or not points or knows_no_labels(run) or points[-1].validation_loss < (1 - HARDLY) * guess:
        return None
    if passes(run) >= MANY_PASSES:
        return None  # with many wrong labels the loss stays near guessing
    last = points[-1].validation_loss
    if last > min(point.validation_loss for point in points):
        return None
    text = f"the validation loss is {number(last, 3)} at the end, and guessing among {_labels(run):,} labels has "
    return f"{text}{number(guess, 3)}", {"last": last, "guess": guess}
