"""The training loop on Accelerate: epochs of steps, with validations and checkpoints as the recipe sets them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ftengine.api import Saved, Stepped
from ftengine.api.on_policy import is_on_policy
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import TrainingError
from ftengine.model import count, state_tensors
from ftengine.model.target_scale import StandardisedTargets
from ftengine.parallel.sharding import is_sharded, not_finite
from ftengine.run.directory import STOP
from ftengine.run.environment import peak_memory_bytes
from ftengine.run.records import TrainingResult
from ftengine.training.checkpoint import (
    Progress,
    drop_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from ftengine.training.cpu import prepare_cpu
from ftengine.training.drawing import Drawing, Examples
from ftengine.training.frozen_weights import FrozenWeights
from ftengine.training.modes import checkpoint_gradients, never_trained, share_statistics
from ftengine.training.optimizer_step import OptimizerStep
from ftengine.training.regularizing import Attached, own_regularizers
from ftengine.training.setup import Setup
from ftengine.training.unsaved_state import UnsavedState
from ftengine.training.validation import Validator

SAVE_SECONDS = 600
"""Longest time between checkpoints without `checkpoint_every`, also within an epoch."""

_SPEEDS = ("examples", "tokens")


class Trainer:
    """Trains the parameters that require gradients, step by step.

    Raises:
        TrainingError: nothing is trainable.
        RecipeError: the model cannot be regularized, or cannot checkpoint its gradients.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.accelerator, self.module = setup, setup.accelerator, setup.loaded.module
        self.progress, self._began = Progress(), time.monotonic()
        self.targets = StandardisedTargets(self.module)  # before anything reads the weights
        self.optimizer_step = OptimizerStep(setup)
        if self.accelerator.is_main_process:
            self.optimizer_step.stop.file = setup.run.path / STOP
        if setup.section.gradient_checkpointing:
            checkpoint_gradients(self.module)
        if self.accelerator.device.type == "cpu":
            prepare_cpu()
        own = own_regularizers(setup.strategy, self.optimizer_step.steps.total)
        self.frozen = FrozenWeights(setup, brought=bool(own))
        self.regularizers = Attached([*own, *setup.regularizers], setup.loaded, setup.task)
        self.regularizers.require_falling()
        task, total = setup.task, self.optimizer_step.steps.total
        self.drawing = Drawing(setup, task, total) if is_on_policy(task) else None
        self.validation = Validator(setup, self.regularizers, self.drawing)
        self._updates = task.updates_per_draw if is_on_policy(task) else 1
        self._shown = task.progress_figure if is_on_policy(task) else "loss"
        self.unsaved: UnsavedState | None = None

    def resume(self) -> None:
        """Continue from the newest intact checkpoint of the run, or from the start if there is none."""
        newest = newest_checkpoint(self.setup.run, self.setup.listener)
        if newest is not None:
            self.progress, tensors = load_checkpoint(newest, self.module, self.optimizer_step.optimizer)
            self.regularizers.load_state_dict(tensors)
            self.regularizers.require_restored(tensors)
        begins = (
            f"continuing from the checkpoint of step {self.progress.step:,}" if newest else "there is no checkpoint yet"
        )
        self.setup.listener.message(f"resume: {begins}")
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if self.accelerator.is_main_process:
            if newest is not None:  # a killed process may have left old ones
                drop_checkpoints(self.setup.run, newest, self.setup.section.keep_checkpoints)
            self.setup.run.keep_steps(self.progress.step)

    def train(self) -> TrainingResult:
        """Train to the end of the schedule or until early stopping; regularizers are detached then, or on failure.

        Raises:
            TrainingError: a loss, gradient or trained tensor is not finite, or a frozen tensor has changed.
        """
        progress, total = self.progress, self.optimizer_step.steps.total
        self._began = time.monotonic() - progress.seconds
        try:
            self._announce()
            stopped = self.validation.is_enough(progress)
            with self.optimizer_step.stop.listening(), self.setup.fast_paths.active():
                while progress.step < total and not stopped:
                    stopped = self._epoch()
            self.validation.keep_weights(progress)
            self._require_finite()
            facts = self.regularizers.on_train_end(self.module, self.validation.losses)
        finally:
            self.regularizers.detach()
        self.frozen.require_unchanged()
        self.targets.restore()
        trained, parameters = count(self.module)
        return TrainingResult(
            steps=progress.step,
            planned_steps=total,
            stopped_early=stopped,
            best_step=progress.best_step,
            best_loss=progress.best_loss,
            seconds=self._seconds(),
            regularizers=tuple(facts),
            trainable_parameters=trained,
            total_parameters=parameters,
            peak_memory_bytes=peak_memory_bytes(),
            **self._speed(),
        )

    def step(self, members: np.ndarray) -> None:
        """Take one optimiser step over an effective batch, and report it."""
        started, progress, rows = time.monotonic(), self.progress, len(members)
        train: EncodedSplit | Examples = self.setup.train
        drawn = None if self.drawing is None else self.drawing.draw(members, progress)
        if drawn is not None:
            train, members = drawn.examples, drawn.examples.members
        learnt_from = time.monotonic()
        for update in range(self._updates):
            figures = self.optimizer_step.step(members, progress, self.regularizers, train, update)
        if self.drawing is not None and drawn is not None:
            self.drawing.record(drawn)
            figures |= {**drawn.figures, "prompts": rows, "seconds_learn": round(time.monotonic() - learnt_from, 4)}
        progress.step += 1
        progress.step_in_epoch += 1
        seconds, tokens = time.monotonic() - started, int(train.lengths[members].sum())
        speed = {"examples_per_second": len(members) / seconds, "tokens_per_second": tokens / seconds}
        memory = peak_memory_bytes()
        line = {
            "step": progress.step,
            "epoch": progress.epoch,
            "trained_tokens": int(train.weights[members].sum()),
            **figures,
            "examples": len(members),
            "tokens": tokens,
            "seconds": round(seconds, 4),
            **{name: round(value, 2) for name, value in speed.items()},
            "peak_memory_bytes": memory,
        }
        self._tell_unsaved()
        self.setup.record(Stepped, line)
        counted = {"tokens": tokens} if self.setup.task.modality == "text" else {}
        counts = {"examples": len(members), **counted, "memory": memory}
        shown = {name: figures[name] for name in (self._shown, "learning_rate")}
        self.setup.listener.advance(**shown, **counts)

    def _tell_unsaved(self) -> None:
        """Report, after the first steps, components with changing state that checkpoints do not hold."""
        if self.unsaved is None:
            components = {self.setup.strategy: False, **self.regularizers.keeping}
            self.unsaved = UnsavedState(components, self.optimizer_step.optimizer, self.setup.optimizer, self.module)
        for message in self.unsaved.look():
            self.setup.listener.message(message)

    def _announce(self) -> None:
        steps, listener = self.optimizer_step.steps, self.setup.listener
        advice = self.targets.advice(self.setup.task.labels)
        for message in (never_trained(self.setup.strategy, self.module, steps), advice):
            if message:
                listener.message(message)
        listener.phase("train", steps.total)
        listener.advance(self.progress.step)

    def _epoch(self) -> bool:
        """Train to the end of an epoch or of the run; return whether early stopping ended the run."""
        progress, section, train = self.progress, self.setup.section, self.setup.train
        batches = train.epoch(self.optimizer_step.steps.batch, self.setup.seed, progress.epoch)
        for members in batches[progress.step_in_epoch :]:
            self.step(members)
            last = progress.step_in_epoch == len(batches)
            if last:
                progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
            ended, stopped = progress.step == self.optimizer_step.steps.total, False
            validate = self.setup.validation is not None and self._due(section.validate_every, last, ended)
            save = self._due(section.checkpoint_every, last, ended)
            if validate or save:
                share_statistics(self.accelerator, self.module)
            if validate:
                self.validation.validate(progress)
                stopped = self.validation.is_enough(progress)
            overdue = section.checkpoint_every is None and self._overdue()
            if save or stopped or overdue:
                self._save()
            if self.optimizer_step.stop.agreed:
                self._stop(saved=save or stopped)
            if ended or stopped:
                return stopped
        return False

    def _stop(self, *, saved: bool) -> None:
        """Save a checkpoint unless it is `saved` already, then end the process as the signal would have."""
        if not saved:
            share_statistics(self.accelerator, self.module)
            self._save()
        self.setup.accelerator.wait_for_everyone()  # the writing process needs the others
        self.optimizer_step.stop.follow()

    def _overdue(self) -> bool:
        """Return whether a save is overdue, by the clock of the main process if all processes save."""
        late = self._seconds() - self.progress.seconds > SAVE_SECONDS
        if not is_sharded(self.module):
            return late
        overdue = torch.tensor(float(late and self.accelerator.is_main_process), device=self.accelerator.device)
        return bool(self.accelerator.reduce(overdue, "sum"))

    def _due(self, every: int | None, epoch_ended: bool, run_ended: bool) -> bool:
        """Return whether to validate or save now: after `every` steps, or with the epochs if it is None."""
        if every is not None:
            return run_ended or self.progress.step % every == 0
        return run_ended or (epoch_ended and self.progress.epoch % self.optimizer_step.steps.epochs_between == 0)

    def _speed(self) -> dict[str, Any]:
        """Return examples and tokens a second over all steps, also before resumes, without validations."""
        if not self.accelerator.is_main_process:
            return {}  # only the main process has the file of metrics
        steps = [line for line in self.setup.run.metrics() if "examples" in line]
        seconds = sum(line["seconds"] for line in steps)
        return {f"{what}_per_second": sum(line[what] for line in steps) / seconds for what in _SPEEDS if seconds}

    def _seconds(self) -> float:
        """Return the seconds of training, including those before resumes."""
        return time.monotonic() - self._began

    def _require_finite(self) -> None:
        """Raise TrainingError if a trained tensor is not finite: no loss shows the effect of the last step yet."""
        tensors = state_tensors(self.module)
        if broken := not_finite(tensors):
            step = self.progress.step
            raise TrainingError(
                f"after step {step}, {len(broken)} of {len(tensors)} trained tensors are not finite. "
                f"{self.optimizer_step.not_finite(step)}"
            )

    def _save(self) -> None:
        progress, setup = self.progress, self.setup
        self._require_finite()
        self.frozen.require_unchanged()  # rather than hours later, at the end
        progress.seconds = self._seconds()
        if self.accelerator.scaler is not None:
            progress.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process or is_sharded(self.module):
            keep, tensors = setup.section.keep_checkpoints, self.regularizers.state_dict()
            folder = save_checkpoint(setup.run, progress, self.module, self.optimizer_step.optimizer, keep, tensors)
            setup.events(Saved(setup.run.path, progress.step, folder))
