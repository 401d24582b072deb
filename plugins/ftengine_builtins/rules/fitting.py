"""Rules about over-fitting, by the validation loss over time, and by training against held-out examples."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ftengine import RunRecords
from ftengine.api import Difference, Finding, Rule
from ftengine.evaluation import near_end
from ftengine.text import ends, number, percent, plain, with_interval
from ftengine_builtins.rules.baseline import passes
from ftengine_builtins.rules.drawn_rewards import drawn_steps
from ftengine_builtins.rules.threshold import GAP_ALARM, no_better_than_a_constant

RISE = 0.05
"""Relative rise of the validation loss above its lowest that counts as over-fitting. Between two validations of one
sound run it wobbles by 1–3 % (MiniLM on BBC news); early stopping usually reacts to any rise at all."""

LEAST_RISE = 0.02
"""Rises of the loss below this are ignored: 0.060 to 0.073 on 54 examples is one example."""

RATIO_ALARM, RATIO_ANYWAY = 1.5, 5.0
"""The same for losses and perplexities: held-out over training; beyond the second, however much of what was gained on
training examples new ones have. Numbers that were learnt well came to 2.5, 40 rows learnt by heart to 18."""


EXPLAINED = ("quality", "calibration", "classes")
"""Kinds of findings that over-fitting explains."""


class OverFitting(Rule):
    """Finds where the validation loss turned upwards while the training loss went on falling."""

    name = "over-fitted-weights"
    order = 6

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        points = run.validations
        if not points:
            if run.steps and not drawn_steps(run):
                text = "Over-fitting could not be checked: there is no validation split (data.validation)."
                yield Finding(kind="over-fitting", level="note", text=text)
            return
        figures = turning(points)
        if figures is None:
            return
        kept = figures["kept_step"] = run.kept_step
        course = f"from step {figures['step']:,} to {figures['last_step']:,}, the validation loss rose from "
        course += f"{number(figures['lowest'], 3)} to {number(figures['last'], 3)} (by {percent(figures['rise'])})"
        if figures["training_last"] is not None:
            before, after = (number(figures[key], 3) for key in ("training_at_lowest", "training_last"))
            course += f" while the loss on training examples fell from {before} to {after}"
        at_kept = next((point.validation_loss for point in points if point.step == kept), None)
        if in_time := at_kept is not None and at_kept <= figures["lowest"] * (1 + RISE):
            text = f"The weights kept are from step {kept:,}, before over-fitting began: {course}."
        else:
            text = f"Keep earlier weights (train.keep_best, train.early_stopping): {course}."
        brief = f"keep earlier weights (train.keep_best, train.early_stopping): {course.partition(' while ')[0]}"
        level, explains = ("good", ()) if in_time else ("alarm", (*EXPLAINED, "over-fitting"))
        yield Finding(kind="over-fitting", level=level, text=text, brief=brief, explains=explains, figures=figures)


def turning(points: Sequence[Any]) -> dict[str, Any] | None:
    """Return the step where over-fitting began and the rise of the validation loss; None if it did not rise."""
    losses = [point.validation_loss for point in points]
    at = min(range(len(losses)), key=losses.__getitem__)
    lowest, last = losses[at], losses[-1]
    if at == len(losses) - 1 or not lowest > 0 or last < max(lowest * (1 + RISE), lowest + LEAST_RISE):
        return None
    before, after = points[at].training_loss, points[-1].training_loss
    if before is not None and after is not None and (after >= before or after >= last):
        return None  # both losses rose, or there is no gap: this is not over-fitting
    return {
        "step": points[at].step,
        "lowest": lowest,
        "last_step": points[-1].step,
        "last": last,
        "rise": last / lowest - 1,
        "training_at_lowest": before,
        "training_last": after if before is not None else None,
        "gap": last - after if after is not None else None,
    }


def learns_by_heart(run: RunRecords) -> bool:
    """Return whether the last validation loss is RATIO_ALARM times that on training examples."""
    last = run.validations[-1] if run.validations else None
    return last is not None and bool(last.training_loss) and last.validation_loss >= RATIO_ALARM * last.training_loss


class GeneralisationGap(Rule):
    """Compares the tuned model on training examples with itself on held-out ones.

    Where its base is better on the training examples too, only what training added to that gap counts.
    """

    name = "generalisation-gap"
    order = 7

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation, metric = run.evaluation, seen_metric(run)
        if evaluation.training is None or metric is None:
            return
        training = evaluation.training
        on_training, new = training.tuned[metric], evaluation.tuned[metric]
        higher = evaluation.metrics[metric].higher_is_better
        gap, before = (_ahead(gaps.get(metric), higher) for gaps in (training.gap, training.base_gap))
        if gap is None:
            return
        grown, much_wider = None, True
        if before is not None:
            growth = training.grown.get(metric)
            grown = growth if growth is None or higher else growth.negated()
            much_wider = _much_wider(run, metric, grown)
        large = falls_behind(run, metric)
        excused = _chosen_in_time(run) and _carries_over(run, metric)
        if excused and not higher:
            excused = (ends(new) or (0, 0))[0] < RATIO_ANYWAY * (ends(on_training) or (0, 0))[1]
        # Within the first pass a gap is not over-fitting.
        alarm = large and much_wider and not excused and passes(run) >= 1
        if not alarm and no_better_than_a_constant(run):
            return  # the model is useless; rule constant-answer reports it
        text = f"{evaluation.metrics[metric].label} {with_interval(on_training)} on training examples and "
        text += f"{with_interval(new)} on held-out ones; the gap is {with_interval(gap)}"
        if before is None:
            text = f"{_amount(alarm)}: {text}."
        elif much_wider or grown is None or _least(grown) > 0:
            text = f"{_amount(alarm)}: {text}, and was {with_interval(before)} for the base."
        else:
            text = f"Better on training examples than on new ones, as the base was before: {text}, and was "
            text += f"{with_interval(before)} for the base, so training did not widen it beyond chance."
        figures = {
            "metric": metric,
            "training": on_training,
            "held_out": new,
            "gap": gap,
            "base_gap": before,
            "grown": grown,
        }
        level, explains = ("alarm", EXPLAINED) if alarm else ("note", ())
        brief = (
            f"train for fewer epochs or on more examples: {evaluation.metrics[metric].label} {plain(on_training)} on "
        )
        brief += f"training examples against {plain(new)} on held-out ones"
        yield Finding(kind="over-fitting", level=level, text=text, brief=brief, explains=explains, figures=figures)


def falls_behind(run: RunRecords, metric: str | None, least: float = GAP_ALARM) -> bool:
    """Return whether the tuned model is far worse on held-out than on training examples, by the intervals' near ends.

    Args:
        least: smallest gap that counts, for a metric where higher is better; 0: any significant gap.
    """
    evaluation = run.evaluation
    if evaluation.training is None or metric is None:
        return False
    on_training, new = evaluation.training.tuned[metric], evaluation.tuned[metric]
    higher = evaluation.metrics[metric].higher_is_better
    if not higher:
        return (ends(new) or (0, 0))[0] >= RATIO_ALARM * (ends(on_training) or (0, 0))[1] > 0
    gap = _ahead(evaluation.training.gap.get(metric), higher)
    return gap is not None and near_end(gap) >= least


def _chosen_in_time(run: RunRecords) -> bool:
    """Return whether no validation has a lower loss than the kept weights."""
    losses = {point.step: point.validation_loss for point in run.validations}
    return bool(losses) and losses.get(run.kept_step) == min(losses.values())


def _carries_over(run: RunRecords, metric: str) -> bool:
    """Return whether held-out examples gained at least half as much as training examples."""
    training = run.evaluation.training
    grown, gained = (None, None) if training is None else (training.grown.get(metric), training.difference.get(metric))
    return grown is not None and gained is not None and near_end(grown) < abs(gained.value) / 2


def _amount(large: bool) -> str:
    better = "better on training examples than on new ones"
    return f"Train for fewer epochs or on more examples: much {better}" if large else f"Somewhat {better}, as is usual"


def _ahead(gap: Difference | None, higher: bool | None) -> Difference | None:
    """Return how much better a figure is on training examples than on held-out ones; None if it is not better."""
    if gap is None or not gap.better:
        return None
    return gap if higher else gap.negated()


def _least(change: Difference) -> float:
    """Return the lower end of a difference; -inf if it has none."""
    return -math.inf if change.low is None else change.low


def _much_wider(run: RunRecords, metric: str, grown: Difference | None) -> bool:
    """Return whether training widened the gap to held-out examples enough for an alarm, apart from the base's gap.

    Args:
        grown: how much more the metric improved on training examples than on held-out ones.
    """
    evaluation, training = run.evaluation, run.evaluation.training
    assert training is not None
    if evaluation.metrics[metric].higher_is_better:
        return grown is None or _least(grown) >= GAP_ALARM
    base = evaluation.base[metric].value / training.base[metric].value if training.base[metric].value > 0 else 1.0
    return evaluation.tuned[metric].value >= RATIO_ALARM * base * training.tuned[metric].value


def seen_metric(run: RunRecords) -> str | None:
    """Return the headline metric if it was measured on training examples too, else the first metric that was.

    Generated answers, for example, are measured only on held-out examples.
    """
    on_training = run.evaluation.training.tuned if run.evaluation.training is not None else {}
    if run.headline_metric in on_training:
        return run.headline_metric
    return next((metric for metric in run.evaluation.tuned if metric in on_training), None)
