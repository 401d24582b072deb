"""Rules about settings that keep training from having an effect, such as a tiny update."""

import math
from collections.abc import Iterator
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import read_predictions
from ftengine.text import capitalized, counted, percent
from ftengine_builtins.rules.rates import raised_rate, usual_rate
from ftengine_builtins.rules.threshold import no_better_than_a_constant
from ftengine_builtins.rules.trend import FEW_STEPS

PREDICTED = ("logits", "value", "query_vector", "loss")
"""What models predict of training rows, of which the first is compared."""

MOVED = 0.02
"""How far predictions moved at least, as a part of their size. Runs that learnt came to 0.2 and more, a rate 10,000
times too low to 0.0004, LoRA with a scale of 0.001 to 0.009."""

LOW_SCALE = 0.1
"""Scale of a low-rank update below which it is what limits it; 1 to 2 are usual."""

RIGHT = 0.95
"""Figure of the base, of those that rise to 1, from which there is little to learn."""

EXPLAINED = ("quality", "learning", "classes", "calibration", "worse", "labels", "over-fitting")
"""What follows from an option far outside its usual range."""


class UnmovedPredictions(Rule):
    """Finds training that left predictions of training rows unchanged, and names the setting that limits it.

    Not if modules are new, as these always learn, nor if the base is nearly always right already.
    """

    name = "unmoved-predictions"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        import numpy as np

        base, tuned = (read_predictions(run.path, "training", side) for side in ("base", "tuned"))
        key = next((key for key in PREDICTED if key in base and key in tuned and base[key].dtype != object), None)
        metric = run.headline_metric or ""
        before = run.evaluation.base.get(metric)
        if before is not None and run.evaluation.metrics[metric].higher_is_better and (before.value or 0) >= RIGHT:
            return
        if run.trained.new_modules or key is None:
            return
        size = float(np.sqrt((base[key] ** 2).mean()))
        moved = float(np.sqrt(((tuned[key] - base[key]) ** 2).mean())) / size if size else 1.0
        if not moved < MOVED:
            return
        advice, limit = _limiting(run)
        brief = f"{advice}: training hardly changed the model, its predictions of training rows moved by "
        brief += percent(moved)
        explains = ("quality", "learning", "classes", "worse")
        figures = {"moved": moved, "limit": limit}
        text = f"{capitalized(brief)}."
        yield Finding(kind="learning", level="note", text=text, brief=brief, explains=explains, figures=figures)


def _limiting(run: RunRecords) -> tuple[str, str]:
    """Return what to do about a too small update, and the recipe's key that limits it."""
    strategy, rate = run.recipe.strategy, run.recipe.train.learning_rate
    alpha, rank = strategy.get("alpha"), strategy.get("rank")
    if isinstance(alpha, (int, float)) and isinstance(rank, int) and alpha < LOW_SCALE * rank:
        scale = f"the update is scaled by alpha / rank = {alpha / rank:g}"
        return f"raise strategy.alpha ({alpha:g}, to {2 * rank:g}; {scale})", "strategy.alpha"
    usual, steps = usual_rate(run), len(run.steps)
    if steps < FEW_STEPS and (usual is None or rate >= usual / 2):
        return f"train longer ({counted(steps, 'step')})", "train.epochs"
    return f"raise train.learning_rate ({rate:g}, to {raised_rate(run):g})", "train.learning_rate"


class UnusualSettings(Rule):
    """Finds options far outside their usual range (`api.usual`), which are alarms where training made nothing better.

    Of several, the one that is furthest outside.
    """

    name = "unusual-settings"
    order = 1

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        options = [option for option in run.unusual_options() if option.key != "train.learning_rate"]  # learning-curve
        if not options:
            return
        option = max(options, key=_times_outside)
        side = "lower" if option.value > option.high else "raise"
        change = run.evaluation.difference.get(run.headline_metric or "")
        no_better = not run.trained.new_modules and change is not None and not change.better
        failed = no_better_than_a_constant(run) or no_better
        brief = (
            f"{side} {option.key} ({option.value:g}): {option.usual}"
            if not option.per
            else f"{side} {option.key}: {option}"
        )
        yield Finding(
            kind="learning",
            level="alarm" if failed else "note",
            text=f"{capitalized(brief)}.",
            brief=brief,
            explains=EXPLAINED if failed else (),
            figures={"option": option.key, "value": option.value, "low": option.low, "high": option.high},
        )


def _times_outside(option: Any) -> float:
    """Return how many times the nearer end of its range an option is, or the end is the option."""
    far, near = sorted(
        (abs(option.value), abs(option.high if option.value > option.high else option.low)), reverse=True
    )
    return far / near if near else math.inf
