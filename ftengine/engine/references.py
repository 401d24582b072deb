"""Predictions of the reference (the model before training) for losses, computed once before the first step.

The reference is the base, with the trained part that the strategy starts from, if any. It is the same under every
strategy, including full tuning, and no copy of the model is held. Its predictions are cached like those of a base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ftengine.api import Evaluator, LoadedModel, ReferenceTask, Strategy
from ftengine.api.on_policy import is_on_policy
from ftengine.api.task_sorts import reference_keys
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.base_predictions import run_base
from ftengine.engine.prepared_data import LabelledTask, ReadyTask
from ftengine.evaluation.plan import EvalPlan, EvalSet, PlannedProbe
from ftengine.evaluation.runner import EvalResult
from ftengine.parallel.device import Device
from ftengine.text import counted


class _Asked(Evaluator):
    """Measures nothing: only losses read the predictions."""

    name = "reference"

    def score(self, rows: Any, weights: np.ndarray) -> dict[str, float]:
        return {}


def ask_reference(
    device: Device,
    labelled: LabelledTask,
    loaded: LoadedModel,
    plan: EvalPlan,
    base: EvalResult,
    splits: Iterable[EncodedSplit] = (),
    starting: Strategy | None = None,
) -> None:
    """Store the reference's predictions with the examples, if the task's loss reads them. All processes take part.

    Args:
        loaded: the reference.
        plan: its examples get predictions, too.
        base: the reference's predictions for the plan.
        splits: further examples.
        starting: the strategy that prepared the model with the trained part that it starts from.
    """
    if not isinstance(labelled.task, ReferenceTask) or not (keys := labelled.task.reference):
        return
    sets = [eval_set for eval_set in plan.sets() if eval_set.reading]
    for eval_set in sets:
        _give(eval_set.split, base, eval_set, keys)
    every = {id(split): split for split in (*(eval_set.split for eval_set in sets), *splits)}
    left = [split for split in every.values() if not split.reference]
    reference_sets = [
        EvalSet(f"reference-{i}", split, [_Asked()], title=" as reference") for i, split in enumerate(left)
    ]
    if reference_sets:
        probes = [
            PlannedProbe("reference", eval_set.name, eval_set.split.rows.source, eval_set)
            for eval_set in reference_sets
        ]
        asking = replace(labelled, task=labelled.task.for_reference())
        asking.task.labels = labelled.task.labels
        result = run_base(device, asking, loaded, EvalPlan(None, probes=probes, seed=plan.seed), starting)
        for eval_set in reference_sets:
            _give(eval_set.split, result, eval_set, keys)


def _give(split: EncodedSplit, result: EvalResult, of: EvalSet, keys: Iterable[str]) -> None:
    columns = result.predictions(of).columns
    split.reference = {key: columns[key] for key in keys}


def reference_starts(labelled: LabelledTask) -> bool:
    """Return whether the reference is the base with a trained part, so that a strategy has to prepare it."""
    return bool(reference_keys(labelled.task)) and labelled.experiment.make_strategy().starts_from is not None


def dropout_beside_reference(ready: ReadyTask) -> str:
    """Return a warning if training uses dropout and the reference, or drawing answers, does not; else ""."""
    on_policy = is_on_policy(ready.task)
    if not (on_policy or reference_keys(ready.task)) or ready.skeleton is None or not ready.skeleton.dropping:
        return ""
    first, *more = ready.skeleton.dropping
    others = f" and {counted(len(more), 'other module')}" if more else ""
    other = "answers are drawn with none" if on_policy else "the reference has none"
    return (
        f"the model has dropout of its own while it trains ({first}{others}), and {other}, so the two "
        "differ by noise before anything is learnt. Regularizer `dropout` with p: 0 switches it off"
    )


def without_reference(labelled: LabelledTask, split: EncodedSplit) -> None:
    """Store zeros in place of the reference's predictions, for measuring time and memory."""
    split.reference = {key: np.zeros(len(split)) for key in reference_keys(labelled.task)}
