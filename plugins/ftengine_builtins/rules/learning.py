"""Rules about the course of training: did it learn, come apart, or stop too soon?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import CHANCE
from ftengine.text import counted, known, number, percent
from ftengine_builtins.rules.baseline import no_better_than_a_constant, threshold_of

LEAST_FALL = 0.05
"""Relative fall of the validation loss that is learning, and in a run's last stretch means: more training would have
paid. Between two validations of one sound run it wobbles by 1–3 % (MiniLM on BBC news)."""

LEAST = 0.02
"""And in units of the loss, below which a change is nothing: from 0.060 to 0.073 on 54 examples is one example."""

FEW_STEPS = 10
"""Below so many steps the curve of the training loss is too short to be told from noise."""

HARDLY = 0.10
"""Relative fall of the training loss, noise added, below which a model that is not better was trained too little."""

PEAK, PEAK_STEPS = 3.0, 3
"""How many times its starting level the training loss reaches on average of so many steps in a row where training came
apart. With labels it also has to be above what guessing evenly gives: one hard batch is many times a loss near 0."""


@dataclass(frozen=True)
class Trend:
    """A straight line through the training losses, weighted by the tokens that are trained on.

    Args:
        first, last: the line at its ends.
        low, high: 95 % interval of their difference.
    """

    first: float
    last: float
    low: float
    high: float

    @property
    def most_fall(self) -> float:
        """The largest fall that the losses leave room for, relative to the beginning."""
        return -self.low / self.first if self.first > 0 else math.inf


def trend(steps: Sequence[Any]) -> Trend:
    """Fit a line to all losses of a run, of at least three steps; the error is that of what is left over."""
    loss = np.array([step.loss for step in steps])
    weight = np.array([max(1, step.trained_tokens) for step in steps], dtype=float)
    at = np.linspace(-0.5, 0.5, len(loss))  # so that the slope is the change over the run
    at = at - np.average(at, weights=weight)
    slope, middle = float((weight * at * loss).sum() / (weight * at**2).sum()), np.average(loss, weights=weight)
    left, freedom = loss - middle - slope * at, len(loss) - 2
    error = math.sqrt((weight * left**2).sum() / freedom / (weight * at**2).sum())
    half = float(stdtrit(freedom, 1 - CHANCE / 2)) * error
    return Trend(float(middle + slope * at[0]), float(middle + slope * at[-1]), slope - half, slope + half)


class LearningCurve(Rule):
    """Says where the training loss rose, came apart, did not fall, or was still falling at the end."""

    name = "learning-curve"
    order = 5
    about = "training"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        if (apart := _came_apart(run)) is not None:
            yield apart
            return
        if len(run.steps) < FEW_STEPS:
            yield from _hardly(run)
            return
        line, rate = trend(run.steps), f"{run.recipe.train.learning_rate:g}"
        figures = {"first": line.first, "last": line.last, "change": {"low": line.low, "high": line.high}}
        course = f"{number(line.first, 3)} at the beginning, {number(line.last, 3)} at the end"
        if line.low > 0:
            text = f"Lower the learning rate ({rate}): the training loss rose ({course})."
            yield Finding(kind="learning", level="alarm", text=text, figures=figures)
        elif line.high >= 0 and line.most_fall < HARDLY and not _learned(run):
            room = f"; it fell by {percent(line.most_fall)} at most" if line.low < 0 else ""
            text = f"The model did not learn: its training loss stayed where it was ({course}{room}). The learning "
            text += f"rate ({rate}) may be far too low or too high, or the inputs do not tell the answers."
            yield Finding(kind="learning", level="alarm", text=text, figures=figures)
        else:
            yield from _hardly(run)
            yield from _unfinished(run)


def _came_apart(run: RunRecords) -> Finding | None:
    """Say where the training loss went far above where it began, whatever it came down to."""
    losses = [step.loss for step in run.steps]
    if len(losses) < 2 * PEAK_STEPS:
        return None
    start = median(losses[: max(PEAK_STEPS, len(losses) // 20)])
    means = [fmean(losses[i : i + PEAK_STEPS]) for i in range(len(losses) - PEAK_STEPS + 1)]
    peak = max(means)
    if peak < PEAK * start or peak < start + 1 or peak < _even_guess(run):
        return None
    at, last = run.steps[means.index(peak)].step, fmean(losses[-PEAK_STEPS:])
    came = f", and came down to {number(last, 3)}" if last < peak / 2 else ""
    text = f"Lower the learning rate ({run.recipe.train.learning_rate:g}): training was unstable; its loss rose from "
    text += f"{number(start, 3)} to {number(peak, 3)} at step {at:,}{came}."
    level = "note" if _learned(run) and not no_better_than_a_constant(run) else "alarm"
    return Finding(kind="learning", level=level, text=text, figures={"first": start, "peak": peak, "last": last})


def _even_guess(run: RunRecords) -> float:
    """Return the loss of guessing evenly among the labels; 0 where there are none."""
    threshold = threshold_of(run)
    return math.log(len(threshold.baseline.classes)) if threshold is not None and threshold.baseline.classes else 0.0


def _learned(run: RunRecords) -> bool:
    """Say whether any comparison shows learning: of held-out examples, of training examples, or of validations."""
    seen = run.evaluation.training
    on_training = () if seen is None or run.trained.new_modules else seen.difference.values()
    return _got_better(run) or any(one.better for one in on_training) or _fell(run.validations)


def _got_better(run: RunRecords) -> bool:
    """Say whether any figure of quality shows learning; that a fresh head's guesses are bettered shows none."""
    threshold, evaluation = threshold_of(run), run.evaluation
    if run.trained.new_modules and threshold is not None:
        beaten = [*threshold.beaten(pooled=True), *threshold.beaten(pooled=False)]
        return not no_better_than_a_constant(run) or bool(beaten)
    return any(d.better for name, d in evaluation.difference.items() if evaluation.metrics[name].kind == "quality")


def _fell(points: Sequence[Any]) -> bool:
    """Say whether the validation loss fell: of the same examples each time, so less noisy than a few batches."""
    losses = [point.validation_loss for point in points]
    return bool(losses) and losses[0] - min(losses) > max(losses[0] * LEAST_FALL, LEAST)


def _hardly(run: RunRecords) -> Iterator[Finding]:
    """Name too little training as the likely cause, where the loss surely hardly fell and the model is of no use.

    That is so where no comparison shows learning, or where it is no better than a constant answer.
    """
    losses = [step.loss for step in run.steps]
    if len(losses) < 2 or not known(run.evaluation.difference.get(run.headline_metric or "")):
        return
    if _learned(run) and not no_better_than_a_constant(run):
        return
    count = min(20, len(losses) // 3 or 1)
    first, last = fmean(losses[:count]), fmean(losses[-count:])
    noise = 2 * math.sqrt(2 / count) * stdev(losses)  # of the fall, as single batches differ
    if not first > 0 or first - last + noise > first * HARDLY:
        return
    text = f"The training loss {'hardly fell' if last < first else 'did not fall'}: from {number(first, 3)} to "
    text += f"{number(last, 3)} in {counted(len(losses), 'step')}. Try more steps or a higher learning rate first "
    text += f"({run.recipe.train.learning_rate:g} now)."
    if (threshold := threshold_of(run)) is not None and (labels := len(threshold.baseline.classes)) > 1:
        text += f" Guessing evenly among {labels:,} labels has a loss of {number(math.log(labels), 3)}."
    level, figures = "alarm" if no_better_than_a_constant(run) else "note", {"first": first, "last": last}
    yield Finding(kind="learning", level=level, text=text, figures=figures | {"steps": len(losses)})


def _unfinished(run: RunRecords) -> Iterator[Finding]:
    """Say that more training would have paid, where the validation loss was still falling at the end."""
    points = run.validations
    if len(points) < 2 or run.training.stopped_early:
        return
    before, last = points[-2:]
    old, new = before.validation_loss, last.validation_loss
    least = max(old * LEAST_FALL, LEAST)
    if not old > 0 or new > min(point.validation_loss for point in points) or new > old - least:
        return
    text = f"Train longer: the validation loss was still falling at the end, by {percent(1 - new / old)} from step "
    text += f"{before.step:,} to {last.step:,}."
    figures = {"before": old, "last": new, "steps": [before.step, last.step]}
    yield Finding(kind="learning", level="note", text=text, figures=figures)
