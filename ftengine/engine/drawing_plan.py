"""The plan of an on-policy task: answers are drawn and scored for one step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from ftengine.api import DrawRequest, LoadedModel
from ftengine.api.on_policy import is_on_policy, is_validated
from ftengine.engine.prepared_data import PreparedData
from ftengine.model import evaluating
from ftengine.parallel.device import Device
from ftengine.text import percent
from ftengine.training.estimate import RunEstimate
from ftengine.training.losses import SAMPLE
from ftengine.training.steps import Steps

TRIED_ROWS = 8
"""Rows that scoring is tried with."""
MOSTLY = 0.5
"""Share of prompts without spread, or of answers that are cut off, from which a plan warns."""


def draw_step(data: PreparedData, device: Device, loaded: LoadedModel, steps: Steps) -> dict[str, float] | None:
    """Draw and score the answers of the first step; return their figures and seconds, None for other tasks."""
    task, train, recipe = data.ready.task, data.encoded["train"], data.ready.recipe
    if not is_on_policy(task):
        return None
    data.experiment.listener.phase("draw answers")
    members = train.epoch(steps.batch, recipe.training_seed, 0)[0]
    rows, size = [train.example(member) for member in members], max(recipe.train.batch_size, task.answers_per_row)
    request = DrawRequest(loaded, rows, recipe.training_seed, 0, size, nullcontext)
    task.start_scoring()
    started = time.monotonic()
    with torch.no_grad(), evaluating(loaded.module), device.accelerator.autocast():
        drawn = task.draw(request)
    drew = time.monotonic()
    figures = task.learn_from(task.score(rows, drawn)).figures
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    seconds = {"seconds_draw": drew - started, "seconds_score": time.monotonic() - drew}
    return {**figures, **seconds, "prompts": len(rows)}


def drawing_seconds(
    data: PreparedData, figures: RunEstimate, drawn: Mapping[str, float], steps: Steps, validations: int
) -> dict[str, Any]:
    """Return an estimate's seconds with those of drawing, scoring and learning from all answers, and of validations."""
    task = data.ready.task
    assert is_on_policy(task)
    a_step, validation = drawn["seconds_draw"] + drawn["seconds_score"], data.encoded.get("validation")
    drawing, rows = a_step * steps.total, 0 if validation is None else min(len(validation), SAMPLE)
    validating = validations * rows * a_step / (drawn["prompts"] * task.answers_per_row) if is_validated(task) else 0.0
    learning = figures.train_seconds * task.answers_per_row * task.updates_per_draw
    seconds = {"train_seconds": learning + drawing, "evaluate_seconds": figures.evaluate_seconds + validating}
    return {**seconds, "draw_seconds": drawing}


def drawing_faults(data: PreparedData, loaded: LoadedModel, drawn: Mapping[str, float] | None) -> Iterator[str]:
    """Yield an on-policy task's warnings and those from the drawn answers; nothing for other tasks."""
    task, train = data.ready.task, data.encoded["train"]
    if not is_on_policy(task):
        return
    yield from task.advice([train.example(i) for i in range(min(TRIED_ROWS, len(train)))], loaded)
    if drawn is None:
        return
    if (share := drawn.get("zero_spread", 0.0)) > MOSTLY:
        yield (
            f"all answers to a prompt get the same reward for {percent(share)} of the prompts of a step, which teach "
            "nothing: they are too hard or too easy. Take other prompts, draw more answers, or train on examples first"
        )
    if (share := drawn.get("cut_off", 0.0)) > MOSTLY:
        yield (
            f"{percent(share)} of the answers are cut off at the most tokens that are drawn: raise that, or say in "
            "the prompt how to answer"
        )
