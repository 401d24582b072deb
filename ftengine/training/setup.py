"""The inputs of a training."""

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
from ftengine.run.directory import METRICS, RunDirectory
from ftengine.run.recipe import TrainSection
from ftengine.run.record import each, without_nan
from ftengine.training.fast_paths import FastPaths


@dataclass(frozen=True)
class Setup:
    """Model, data and components of one training.

    Args:
        loaded: the model after `strategy.prepare`.
        regularizers: the recipe's regularizers.
        callbacks: names of the recipe's callbacks.
        general: data on which regularizers may measure forgetting, or None.
        processes: the number with which the run began, which determines the effective batch; it may differ now.
        run: the folder for metrics and checkpoints.
        listener: gets every step.
        events: called in the main process for every step, validation and checkpoint.
        fast_paths: the active fast paths.
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

    def record(self, event: type[Stepped] | type[Validated], line: dict[str, Any], **more: Any) -> None:
        """In the main process, write a line of metrics.jsonl and report its event; undefined values are null."""
        line = each(line, without_nan)
        if self.accelerator.is_main_process:
            self.run.append_steps(METRICS, [line])
            self.events(event(self.run.path, line["step"], line, **more))
