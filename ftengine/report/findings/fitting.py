"""Did training learn, learn by heart, or stop too soon?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, variance
from typing import Any, Literal

from ftengine.report.files import RunFiles
from ftengine.report.findings.finding import Finding
from ftengine.report.findings.quality import class_counts, no_better_than_a_constant
from ftengine.report.words import counted, digits, metric_name, percent, with_interval

RISE = 0.05
"""Relative rise of the validation loss above its lowest that counts as over-fitting. Between two validations of one
sound run it wobbles by 1–3 % (MiniLM on BBC news); early stopping usually reacts to any rise at all."""

LEAST_RISE = 0.02
"""And in units of the loss, below which a rise is nothing: from 0.060 to 0.073 on 54 examples is one example."""

GAP_ALARM = 0.10
"""Gap between training and held-out figures, in points of a proportion and at the interval's near end, from which
the model's figures on what it has seen are another matter than on what is new. Some gap is normal: it was trained
on the one and not on the other."""

RATIO_ALARM = 1.5
"""The same for losses and perplexities: held-out over training."""

STEEP = 0.10
"""Relative fall of the loss between the last two validations that means: longer training would have paid."""

FEW_STEPS = 10
"""Below so many steps the curve of the training loss is too short to be told from noise."""

HARDLY = 0.10
"""Relative fall of the training loss below which a model that is not better has had too little training."""


def over_fitting(files: RunFiles) -> Iterator[Finding]:
    """Find where the validation loss turned upwards while the training loss went on falling."""
    points = files.validations
    if not points:
        if files.steps:
            yield Finding(
                "over-fitting",
                "note",
                "Over-fitting could not be watched: there is no validation split (data.validation).",
            )
        return
    figures = turning(points)
    if figures is None:
        return
    kept = files.kept_step
    figures["kept_step"] = kept
    rise, best, last = figures["rise"], figures["step"], figures["last_step"]
    course = (
        f"from step {best} on, the validation loss rose from {digits(figures['lowest'], 3)} to "
        f"{digits(figures['last'], 3)} ({percent(rise)} more, by step {last})"
    )
    if figures["training_last"] is not None:
        course += (
            f" while the loss on training examples fell from {digits(figures['training_at_lowest'], 3)} to "
            f"{digits(figures['training_last'], 3)}; the gap is {digits(figures['gap'], 3)}"
        )
    at_kept = next((p["validation_loss"] for p in points if p["step"] == kept), None)
    if at_kept is not None and at_kept <= figures["lowest"] * (1 + RISE):
        text = f"Training went on into over-fitting, but the weights that were kept are from before (step {kept}): "
        yield Finding("over-fitting", "note", f"{text}{course}.", figures)
    else:
        remedy = "train.keep_best or train.early_stopping would have kept the earlier weights"
        yield Finding("over-fitting", "alarm", f"The kept weights are over-fitted: {course}. {remedy}.", figures)


def turning(points: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return where over-fitting began and how far it went, or None where the validation loss did not turn.

    Args:
        points: validations in order: step, validation_loss, and training_loss, measured likewise on training rows.
    """
    losses = [point["validation_loss"] for point in points]
    at = min(range(len(losses)), key=losses.__getitem__)
    lowest, last = losses[at], losses[-1]
    if at == len(losses) - 1 or not lowest > 0 or last < max(lowest * (1 + RISE), lowest + LEAST_RISE):
        return None
    before, after = points[at].get("training_loss"), points[-1].get("training_loss")
    if before is not None and after is not None and (after >= before or after >= last):
        return None  # both rose, or there is no gap: whatever that is, it is not learning by heart
    return {
        "step": points[at]["step"],
        "lowest": lowest,
        "last_step": points[-1]["step"],
        "last": last,
        "rise": last / lowest - 1,
        "training_at_lowest": before,
        "training_last": after if before is not None else None,
        "gap": last - after if after is not None else None,
    }


def generalisation(files: RunFiles) -> Iterator[Finding]:
    """Compare the tuned model on training examples with itself on held-out ones."""
    seen = (files.evaluation.get("training") or {}).get("tuned") or {}
    metric = files.headline_metric
    if metric is None or metric not in seen:
        return
    known, new = seen[metric], files.evaluation["tuned"][metric]
    higher = files.higher_is_better(metric)
    if higher is None or None in (known.get("low"), known.get("high"), new.get("low"), new.get("high")):
        return
    gap = difference_of_independent(known, new) if higher else difference_of_independent(new, known)
    name = metric_name(metric)
    figures = {"metric": metric, "training": known, "held_out": new, "gap": gap}
    pair = f"{name} {with_interval(known)} on training examples, {with_interval(new)} on held-out ones"
    if gap["low"] <= 0:
        return
    large = gap["low"] >= GAP_ALARM if higher else new["low"] >= RATIO_ALARM * known["high"] > 0
    if large:
        yield Finding(
            "over-fitting",
            "alarm",
            f"Far better on what it was trained on than on what is new: {pair}; the gap is {with_interval(gap)}.",
            figures,
        )
    else:
        yield Finding(
            "over-fitting",
            "note",
            f"Somewhat better on what it was trained on, as is usual: {pair}; the gap is {with_interval(gap)}.",
            figures,
        )


def difference_of_independent(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return first - second of two figures on different examples, with the interval from theirs.

    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10; for other
    figures the same combination holds as far as their intervals do (Zou & Donner 2008).
    """
    value = first["value"] - second["value"]
    low = value - math.hypot(first["value"] - first["low"], second["high"] - second["value"])
    high = value + math.hypot(first["high"] - first["value"], second["value"] - second["low"])
    return {"value": value, "low": low, "high": high}


def learning(files: RunFiles) -> Iterator[Finding]:
    """Say where the training loss did not fall, or was still falling steeply at the end."""
    losses = [step["loss"] for step in files.steps]
    if len(losses) < FEW_STEPS:
        yield from _hardly(files, len(losses) // 3 or 1)
        return
    count = max(3, min(20, len(losses) // 10))
    first, last = losses[:count], losses[-count:]
    change = fmean(last) - fmean(first)
    noise = math.sqrt((variance(first) + variance(last)) / count)
    figures = {"first": fmean(first), "last": fmean(last), "steps": count, "standard_error": noise}
    measured = f"{digits(fmean(first), 3)} over the first {count} steps, {digits(fmean(last), 3)} over the last"
    rate = _rate(files)
    if change > 2 * noise:
        yield Finding(
            "learning",
            "alarm",
            f"Training made the loss worse: {measured}. The learning rate{rate and f' ({rate})'} is probably too high.",
            figures,
        )
    elif change > -2 * noise and not _anything_better(files):
        yield Finding(
            "learning",
            "alarm",
            f"The model did not learn: its training loss is not lower at the end ({measured}). The learning rate "
            f"{rate and f'({rate}) '}may be far too low or too high, or the labels hang on nothing in the text.",
            figures,
        )
    else:
        yield from _hardly(files, count)
        yield from _unfinished(files)


def _hardly(files: RunFiles, count: int) -> Iterator[Finding]:
    """Name too little training as the likely cause, where the model is not better and its loss hardly fell.

    Args:
        count: steps at either end whose mean loss is taken.
    """
    losses = [step["loss"] for step in files.steps]
    difference = files.evaluation.get("difference", {}).get(files.headline_metric) or {}
    if len(losses) < 2 or not difference or difference.get("better"):
        return
    first, last = fmean(losses[:count]), fmean(losses[-count:])
    if not first > 0 or last < first * (1 - HARDLY):
        return
    rate = _rate(files)
    text = (
        f"The training loss hardly fell: from {digits(first, 3)} to {digits(last, 3)} in "
        f"{counted(len(losses), 'step')}. More steps or a higher learning rate "
        f"{rate and f'({rate} now) '}are what to try first."
    )
    if (found := class_counts(files)) is not None and len(found[0]) > 1:
        labels = len(found[0])
        text += f" Guessing evenly among {labels} labels costs {digits(math.log(labels), 3)}."
    level: Literal["alarm", "note"] = "alarm" if no_better_than_a_constant(files) else "note"
    yield Finding("learning", level, text, {"first": first, "last": last, "steps": len(losses)})


def _rate(files: RunFiles) -> str:
    """Return the learning rate, "" where the recipe leaves it to its strategy or optimizer."""
    rate = (files.recipe.get("train") or {}).get("learning_rate")
    return "" if rate is None else f"{rate:g}"


def _anything_better(files: RunFiles) -> bool:
    return any(d.get("better") for d in files.evaluation.get("difference", {}).values())


def _unfinished(files: RunFiles) -> Iterator[Finding]:
    points = files.validations
    if len(points) < 2 or files.training.get("stopped_early"):
        return
    before, last = points[-2], points[-1]
    old, new = before["validation_loss"], last["validation_loss"]
    if not old > 0 or new > min(point["validation_loss"] for point in points) or new > old * (1 - STEEP):
        return
    yield Finding(
        "learning",
        "note",
        f"Training ended while the validation loss was still falling: by {percent(1 - new / old)} from step "
        f"{before['step']} to {last['step']}. More epochs may well pay.",
        {"before": old, "last": new, "steps": [before["step"], last["step"]]},
    )
