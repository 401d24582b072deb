"""What a verdict advises, done to its run: for `python benchmarks/verdicts.py --follow`.

A finding that leads a verdict has one thing to be done first. Where that is a key of the recipe, ADVICE does it; where
it is the data that are to be mended, the truth's own `mend` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from verdicts_truths import Truth

from ftengine import Run
from ftengine.api import Finding
from ftengine.engine.compare import compare_runs
from ftengine.engine.subprocess_runs import Child
from ftengine.errors import RunError
from ftengine.evaluation.intervals import subtracted_interval
from ftengine.run.records import EvaluationResult, Verdict

Mend = Callable[[dict[str, Any]], dict[str, Any]]


def train_key(key: str, change: Callable[[Any], Any]) -> Mend:
    def mend(recipe: dict[str, Any]) -> dict[str, Any]:
        return {**recipe, "train": {**recipe["train"], key: change(recipe["train"].get(key))}}

    return mend


def longer(recipe: dict[str, Any]) -> dict[str, Any]:
    """Train three times as long."""
    train = recipe["train"]
    key = "max_steps" if train.get("max_steps") else "epochs"
    return {**recipe, "train": {**train, key: 3 * train[key]}}


def longer_limit(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "task": {**recipe["task"], "max_length": 4 * recipe["task"]["max_length"]}}


def without_leaks(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "data": {**recipe["data"], "leaks": "drop"}}


ADVICE: dict[tuple[str, str], tuple[str, Mend]] = {
    ("learning-curve", "steps"): ("longer", longer),
    ("over-fitted-weights", "rise"): ("earlier weights", train_key("keep_best", lambda _: True)),
    ("generalisation-gap", "gap"): ("fewer epochs", train_key("epochs", lambda epochs: max(1, epochs // 2))),
    ("leaked-rows", "between"): ("leaks dropped", without_leaks),
    ("cut-examples", "truncated"): ("longer limit", longer_limit),
    ("unanswered-classes", "seldom"): ("balanced", train_key("sampling", lambda _: "balanced")),
}
"""What is done where a finding of this rule, with this figure, leads; the first that fits."""


KEYS = ("stuck", "peak", "change", "steps", "rise", "gap", "between", "truncated", "seldom")
"""Figures that tell apart what one rule advises."""


def key_of(finding: Finding) -> tuple[str, str]:
    """Return what a finding is known by: its source, and the figure that tells its kinds of advice apart."""
    return finding.source, next((key for key in (*KEYS, *finding.figures) if key in finding.figures), "")


def advice_on(truth: Truth, verdict: Verdict) -> tuple[str, Mend] | None:
    """Return what the first finding of a verdict advises, and what does it; None: it is for a person to do."""
    first = verdict.findings[0]
    if truth.mend is not None and truth.named(first):
        return "data mended", truth.mend
    if "rate" in first.figures:
        return "another rate", train_key("learning_rate", lambda _: first.figures["rate"])
    return ADVICE.get(key_of(first))


def is_better(after: Path, before: Path) -> bool:
    """Say whether the figure that decides is better beyond chance after advice was followed.

    Of the same held-out examples by their paired difference, as `ftengine compare` has it; where advice changed these
    too, by the interval of the difference of both figures.
    """
    runs = [Run(folder) for folder in (after, before)]
    new, old = (EvaluationResult.read(run.directory) for run in runs)
    metric = old.headline_metric
    if metric is None or metric not in new.tuned:
        return False
    children = [Child(str(run.path), run.recipe.model_copy(update={"output": str(run.path)})) for run in runs]
    try:
        tasks = [run.without_model() for run in runs]
        return bool(compare_runs(children, tasks, [True, True], metric, ranked="all").differences[0].better)
    except RunError:  # other examples
        figures = [side.tuned[metric] for side in (old, new)]
        ends = subtracted_interval(*(x.value for x in figures), *((x.low, x.high) for x in figures), 0.0)
        near = ends[0] if old.metrics[metric].higher_is_better else ends[1] and -ends[1]
        return near is not None and near > 0


def followed(steps: list[dict[str, Any]]) -> str:
    """Say what following came to: each step has the advice, whether the figure got better, and the finding's key.

    "better" where it did in any step or nothing is advised any more, "next" where the verdict went on to say other
    things, "circle" where it said again what it had said before without anything having become better.
    """
    if any(step["better"] for step in steps[1:]):
        return "better"
    keys = [tuple(step["key"]) for step in steps]
    return "circle" if len(set(keys)) < len(keys) else "next"
