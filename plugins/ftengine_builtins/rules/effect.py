"""Rules about settings that keep training from having an effect, such as a tiny update."""

import math
from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import read_predictions
from ftengine.text import capitalized, counted, percent
from ftengine_builtins.rules.rates import raised_rate, usual_rate
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

SHRUNK = 1.0
"""Sum of learning rates times train.weight_decay from which weights shrink to a third and less."""


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
    """Finds a weight decay that shrinks weights to a third or less over the run, whatever they learn."""

    name = "unusual-settings"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        decay = run.recipe.train.weight_decay
        shrunk = decay * sum(step.learning_rate for step in run.steps)
        if shrunk < SHRUNK:
            return
        brief = f"lower train.weight_decay ({decay:g}, to 0.1 or less): over the run it shrinks weights to "
        brief += f"{percent(math.exp(-shrunk))} of what they were, so they can hardly learn"
        explains = ("quality", "learning", "classes", "calibration", "worse")
        figures = {"weight_decay": decay, "shrunk": shrunk}
        text = f"{capitalized(brief)}."
        yield Finding(kind="learning", level="alarm", text=text, brief=brief, explains=explains, figures=figures)
