"""The training loop on Accelerate: epochs of steps, validated and saved when the recipe says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftengine.api import Saved, Stepped
from ftengine.data.batching import epoch_batches
from ftengine.training.checkpoint import (
    Progress,
    checkpoint_folders,
    load_checkpoint,
    load_regularizers,
    save_checkpoint,
)
from ftengine.training.descent import Descent
from ftengine.training.modes import checkpoint_gradients, share_statistics
from ftengine.training.regularizing import Attached
from ftengine.training.setup import Setup
from ftengine.training.validation import Validation

SAVE_SECONDS = 600


@dataclass(frozen=True)
class TrainingResult:
    """What training came to.

    Args:
        steps: optimiser steps done.
        planned_steps: steps that the recipe asked for.
        stopped_early: whether early stopping ended it.
        best_step, best_loss: the step with the lowest validation loss, which is kept; None without validation.
        seconds: training time, validation included.
        regularizers: what each regularizer did to the weights that are kept, under its name.
    """

    steps: int
    planned_steps: int
    stopped_early: bool
    best_step: int | None
    best_loss: float | None
    seconds: float
    regularizers: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains what requires gradients, step by step.

    Args:
        setup: model, data and components.

    Raises:
        TrainingError: nothing is trainable.
        RecipeError: the model cannot be regularized, or cannot checkpoint its gradients.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.accelerator, self.module = setup, setup.accelerator, setup.loaded.module
        self.progress = Progress()
        self.descent = Descent(setup)
        if setup.section.gradient_checkpointing:
            checkpoint_gradients(self.module)
        self.regularizers = Attached(setup.regularizers, setup.loaded, setup.task)
        self.validation = Validation(setup, self.regularizers)

    def resume(self) -> None:
        """Continue from the newest checkpoint of the run, or from the start when it has none yet."""
        folders = checkpoint_folders(self.setup.run)
        if folders:
            self.progress = load_checkpoint(folders[-1], self.module, self.descent.optimizer)
            self.regularizers.restore(load_regularizers(folders[-1]))
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if self.accelerator.is_main_process:
            self.setup.run.keep_metrics(self.progress.step)

    def train(self) -> TrainingResult:
        """Train to the end of the schedule or until early stopping; regularizers are detached then, or on failure.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        progress, total = self.progress, self.descent.schedule.total
        clock = _Clock(progress.seconds)
        try:
            self._announce()
            stopped = self.validation.is_enough(progress)
            while progress.step < total and not stopped:
                stopped = self._epoch(clock)
            self.validation.keep_weights(progress)
            facts = self.regularizers.finish(self.module, self.validation.losses)
        finally:
            self.regularizers.detach()
        best_step, best_loss = progress.best_step, progress.best_loss
        return TrainingResult(progress.step, total, stopped, best_step, best_loss, clock.seconds(), facts)

    def step(self, members: np.ndarray, clock: _Clock) -> None:
        """Take one optimiser step over an effective batch, and tell of it."""
        started, progress, train = clock.seconds(), self.progress, self.setup.train
        figures = self.descent.step(members, progress, self.regularizers)
        progress.step += 1
        progress.step_in_epoch += 1
        self.regularizers.stepped(progress.step)
        tokens = int(train.lengths[members].sum())
        seconds = clock.seconds() - started
        line = {
            "step": progress.step,
            "epoch": progress.epoch,
            **figures,
            "examples": len(members),
            "tokens": tokens,
            "trained_tokens": int(train.weights[members].sum()),
            "seconds": round(seconds, 4),
        }
        self.setup.record(Stepped, line)
        counted = {"tokens": tokens} if self.setup.task.modality == "text" else {}
        self.setup.listener.advance(loss=figures["loss"], learning_rate=figures["learning_rate"], **counted)

    def _announce(self) -> None:
        total, listener, never = self.descent.schedule.total, self.setup.listener, self.descent.never_trained()
        if never:
            listener.message(
                f"{never} of {len(self.descent.parameters)} trainable tensors stay frozen for all {total} steps"
            )
        listener.phase("train", total)
        listener.advance(self.progress.step)

    def _epoch(self, clock: _Clock) -> bool:
        """Train to the end of an epoch, of the run, or of patience; say whether early stopping ended the run."""
        progress, section, train = self.progress, self.setup.section, self.setup.train
        size = section.batch_size * section.accumulate * self.accelerator.num_processes
        batches = epoch_batches(train.lengths, size, self.setup.seed, progress.epoch)
        for members in batches[progress.step_in_epoch :]:
            self.step(members, clock)
            last = progress.step_in_epoch == len(batches)
            if last:
                progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
            ended, stopped = progress.step == self.descent.schedule.total, False
            validate = self.setup.validation is not None and self._due(section.validate_every, last, ended)
            save = self._due(section.checkpoint_every, last, ended)
            if validate or save:
                share_statistics(self.accelerator, self.module)
            if validate:
                self.validation.validate(progress)
                stopped = self.validation.is_enough(progress)
            if save or stopped or self._overdue(clock):
                self._save(clock)
            if ended or stopped:
                return stopped
        return False

    def _due(self, every: int | None, epoch_ended: bool, run_ended: bool) -> bool:
        return run_ended or (epoch_ended if every is None else self.progress.step % every == 0)

    def _overdue(self, clock: _Clock) -> bool:
        """Without `checkpoint_every`, long epochs are saved every ten minutes as well."""
        return self.setup.section.checkpoint_every is None and clock.seconds() - self.progress.seconds > SAVE_SECONDS

    def _save(self, clock: _Clock) -> None:
        progress, setup = self.progress, self.setup
        progress.seconds = clock.seconds()
        if self.accelerator.scaler is not None:
            progress.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            keep, tensors = setup.section.keep_checkpoints, self.regularizers.tensors()
            folder = save_checkpoint(setup.run, progress, self.module, self.descent.optimizer, keep, tensors)
            setup.events(Saved(setup.run.path, progress.step, folder))


class _Clock:
    """Seconds of training, continued over resumes."""

    def __init__(self, before: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._start = now, now() - before

    def seconds(self) -> float:
        return self._now() - self._start
