"""What a training is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from ftengine.api import (
    Event,
    Listener,
    LoadedModel,
    Optimizer,
    Regularizer,
    Schedule,
    Stepped,
    Strategy,
    Task,
    Validated,
)
from ftengine.data.encoding import EncodedSplit
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import TrainSection
from ftengine.run.record import each, without_nan
from ftengine.training.fast_paths import FastPaths


@dataclass(frozen=True)
class Setup:
    """Model, data and components of one training.

    Args:
        loaded: the model after `strategy.prepare`.
        regularizers: those of the recipe.
        callbacks: names of those of the recipe.
        general: data on which regularizers may measure forgetting, or None.
        processes: with how many the run began, which decides the effective batch; now there may be fewer or more.
        run: where metrics and checkpoints go.
        listener: told of every step.
        events: told of every step, validation and checkpoint, in the main process.
        fast_paths: by which the model computes.
    """

    accelerator: Accelerator
    loaded: LoadedModel
    task: Task
    strategy: Strategy
    regularizers: Sequence[Regularizer]
    callbacks: Sequence[str]
    optimizer: Optimizer
    schedule: Schedule
    train: EncodedSplit
    validation: EncodedSplit | None
    general: EncodedSplit | None
    section: TrainSection
    seed: int
    processes: int
    run: RunDirectory
    listener: Listener
    events: Callable[[Event], None]
    fast_paths: FastPaths

    def record(self, event: type[Stepped] | type[Validated], line: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl and tell of it, in the main process; what is undefined is null."""
        line = each(line, without_nan)
        if self.accelerator.is_main_process:
            self.run.append_metrics(line)
            self.events(event(self.run.path, line["step"], line))
