"""The training loop on Accelerate.

The loss is divided once, by the weight of the whole effective batch over all micro-batches and
processes, so that 8×1 equals 1×8. Gradients are added up over processes here rather than by a wrapper
around the model: the wrapper would average them, and a task's loss need not pass through the model's
own forward.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from ftengine.api import FreezesByStep, Listener, LoadedModel, Regularizer, Strategy, Task
from ftengine.data.batching import epoch_batches, micro_batches
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import TrainingError
from ftengine.model import copy_into, state_tensors, trainable
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import TrainSection
from ftengine.training.checkpoint import (
    Progress,
    checkpoint_folders,
    load_best,
    load_checkpoint,
    load_regularizers,
    save_best,
    save_checkpoint,
)
from ftengine.training.losses import SAMPLE, mean_loss, stacked, to_device, zeros
from ftengine.training.modes import checkpoint_gradients, frozen, share_statistics, train_mode
from ftengine.training.regularizing import Attached
from ftengine.training.schedule import factor, plan_steps, warmup_steps

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


class Trackers(Protocol):
    """Whoever else wants the figures of a run."""

    def log(self, line: Mapping[str, Any]) -> None: ...


class Trainer:
    """Trains what requires gradients, step by step.

    Args:
        accelerator: device, mixed precision and processes.
        loaded: the model after `strategy.prepare`.
        task, strategy, regularizers: the recipe's components.
        train: the training split.
        validation: the validation split, or None.
        section: the recipe's `train`.
        seed: the run's seed.
        run: where metrics and checkpoints go.
        listener: told of every step.
        general: general data on which regularizers may measure forgetting, or None.
        trackers: they get every line of metrics.jsonl, in the main process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loaded: LoadedModel,
        task: Task,
        strategy: Strategy,
        regularizers: Sequence[Regularizer],
        train: EncodedSplit,
        validation: EncodedSplit | None,
        section: TrainSection,
        seed: int,
        run: RunDirectory,
        listener: Listener,
        general: EncodedSplit | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.accelerator, self.loaded, self.task = accelerator, loaded, task
        self.train_split, self.validation, self.section, self.seed = train, validation, section, seed
        self.run, self.listener, self.strategy, self.trackers = run, listener, strategy, trackers
        self.general = general
        self.sample = train.sample(min(len(validation), SAMPLE), seed) if validation is not None else None
        self.module = loaded.module
        self.parameters = list(trainable(self.module).values())
        if not self.parameters:
            raise TrainingError(f"strategy {strategy.name!r} left nothing to train: no parameter requires a gradient.")
        groups = strategy.param_groups(self.module, section.learning_rate, section.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=_fused(self.parameters))
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.scaled = accelerator.prepare_optimizer(self.optimizer)
        self.schedule = plan_steps(len(train), section, accelerator.num_processes)
        self.progress = Progress()
        if section.gradient_checkpointing:
            checkpoint_gradients(self.module)
        self.regularizers = Attached(regularizers, loaded, task)

    def resume(self) -> None:
        """Continue from the newest checkpoint of the run, or from the start when it has none yet."""
        folders = checkpoint_folders(self.run)
        if folders:
            self.progress = load_checkpoint(folders[-1], self.module, self.optimizer)
            self.regularizers.restore(load_regularizers(folders[-1]))
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if self.accelerator.is_main_process:
            self.run.keep_metrics(self.progress.step)

    def train(self) -> TrainingResult:
        """Train to the end of the schedule or until early stopping; regularizers are detached then, or on failure.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        progress, clock = self.progress, _Clock(self.progress.seconds)
        try:
            self._announce()
            stopped = self._patience_is_over()
            while progress.step < self.schedule.total and not stopped:
                stopped = self._epoch(clock)
            self._keep_weights()
            facts = self.regularizers.finish(self.module, self._measure)
        finally:
            self.regularizers.detach()
        return TrainingResult(
            progress.step, self.schedule.total, stopped, progress.best_step, progress.best_loss, clock.seconds(), facts
        )

    def _announce(self) -> None:
        never = len(self._frozen(self.schedule.total - 1))
        if never:
            self.listener.message(
                f"{never} of {len(self.parameters)} trainable tensors stay frozen to the last of "
                f"{self.schedule.total} steps"
            )
        self.listener.phase("train", self.schedule.total)
        self.listener.advance(self.progress.step)

    def _epoch(self, clock: _Clock) -> bool:
        """Train to the end of an epoch, of the run, or of patience; say whether early stopping ended the run."""
        progress, section = self.progress, self.section
        size = section.batch_size * section.accumulate * self.accelerator.num_processes
        batches = epoch_batches(self.train_split.lengths, size, self.seed, progress.epoch)
        for members in batches[progress.step_in_epoch :]:
            self._step(members, clock)
            last = progress.step_in_epoch == len(batches)
            if last:
                progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
            ended, stopped = progress.step == self.schedule.total, False
            validate = self.validation is not None and self._due(section.validate_every, last, ended)
            save = self._due(section.checkpoint_every, last, ended)
            if validate or save:
                share_statistics(self.accelerator, self.module)
            if validate:
                self._validate()
                stopped = self._patience_is_over()
            if save or stopped or self._overdue(clock):
                self._save(clock)
            if ended or stopped:
                return stopped
        return False

    def _due(self, every: int | None, epoch_ended: bool, run_ended: bool) -> bool:
        return run_ended or (epoch_ended if every is None else self.progress.step % every == 0)

    def _overdue(self, clock: _Clock) -> bool:
        """Without `checkpoint_every`, long epochs are saved every ten minutes as well."""
        return self.section.checkpoint_every is None and clock.seconds() - self.progress.seconds > SAVE_SECONDS

    def _step(self, members: np.ndarray, clock: _Clock) -> None:
        """One optimiser step over an effective batch."""
        started, progress = clock.seconds(), self.progress
        rate = factor(
            self.section.schedule,
            progress.step,
            self.schedule.total,
            warmup_steps(self.section.warmup, self.schedule.total),
        )
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        self._draw_randomness()
        with frozen(self._frozen(progress.step)):
            train_mode(self.module)
            losses, norm = self._descend(members)
        progress.step += 1
        progress.step_in_epoch += 1
        self.regularizers.stepped(progress.step)
        tokens = int(self.train_split.lengths[members].sum())
        seconds = clock.seconds() - started
        self._record(
            {
                "step": progress.step,
                "epoch": progress.epoch,
                **losses,
                "learning_rate": self.section.learning_rate * rate,
                "grad_norm": norm if math.isfinite(norm) else None,
                "examples": len(members),
                "tokens": tokens,
                "trained_tokens": int(self.train_split.weights[members].sum()),
                "seconds": round(seconds, 4),
            }
        )
        counted = {"tokens": tokens} if self.task.unit == "tokens" else {}
        self.listener.advance(loss=losses["loss"], learning_rate=self.section.learning_rate * rate, **counted)

    def _frozen(self, step: int) -> list[nn.Parameter]:
        if not isinstance(self.strategy, FreezesByStep):
            return []
        return list(self.strategy.frozen(self.module, step, self.schedule.total, self.schedule.per_epoch))

    def _draw_randomness(self) -> None:
        """Seed every generator from (seed, step, process), so that resuming replays the same dropout masks."""
        path = [self.seed, self.progress.step, self.accelerator.process_index]
        set_seed(int(np.random.SeedSequence(path).generate_state(1)[0]))

    def _descend(self, members: np.ndarray) -> tuple[dict[str, float], float]:
        """Compute gradients over an effective batch and step; return its mean losses and the gradient's norm.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        step, totals = self.progress.step, self._accumulate(members, self.progress.epoch)
        loss_sum, penalty_sum, weight, penalties = (float(x) for x in self.accelerator.reduce(totals, "sum"))
        for what, value in (("loss", loss_sum), ("penalty of the regularizers", penalty_sum)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {what} is {value} at step {step + 1}. Lower train.learning_rate "
                    f"(now {self.section.learning_rate:g}) or use train.precision float32; `--resume` continues from "
                    "the last checkpoint."
                )
        if step == 0 and weight:
            self._tell_untouched()
        norm = self._update(weight)
        losses = {"loss": loss_sum / weight if weight else 0.0}
        if penalties:
            losses["penalty"] = penalty_sum / weight if weight else 0.0
        return losses, norm

    def _accumulate(self, members: np.ndarray, epoch: int) -> Tensor:
        """Add up gradients of summed losses over this process's share.

        Returns:
            (4,) the sum of losses, of penalties by weight, the weight, and the number of penalties.
        """
        accelerator = self.accelerator
        totals = zeros(4, accelerator.device)
        mine = micro_batches(members, self.section.batch_size, accelerator.process_index, accelerator.num_processes)
        for chosen in mine:
            batch = to_device(self.train_split.batch(chosen, epoch), accelerator.device)
            with accelerator.autocast():
                loss_sum, weight = self.task.loss(self.module, batch)
                penalty = self.regularizers.penalty(batch, loss_sum / weight) if weight else None
            # The engine divides by the weight of the whole effective batch, so this counts a penalty by its share.
            added = 0.0 if penalty is None else penalty * weight
            whole = loss_sum + added
            if whole.requires_grad:
                (accelerator.scaler.scale(whole) if accelerator.scaler else whole).backward()
            totals += stacked(accelerator.device, loss_sum, added, weight, float(penalty is not None))
        return totals

    def _tell_untouched(self) -> None:
        """Say which parameters would train but are not part of the model's computation.

        Raises:
            TrainingError: none is, in any process.
        """
        awake = trainable(self.module)
        untouched = [name for name, p in awake.items() if p.grad is None]
        touched = torch.tensor(float(len(awake) - len(untouched)), device=self.accelerator.device)
        if not self.accelerator.reduce(touched, "sum"):
            raise TrainingError(
                f"strategy {self.strategy.name!r} trains {len(awake)} tensors, e.g. {untouched[0]}, and none got a "
                "gradient in the first step: the model does not compute with them. Choose other layers."
            )
        if untouched:
            self.listener.message(
                f"{len(untouched)} of {len(self.parameters)} trainable tensors got no gradient in the first step and "
                f"stay as they are, e.g. {untouched[0]}"
            )

    def _update(self, weight: float) -> float:
        """Divide the gradients by the effective batch's weight, clip, step; return their norm before clipping."""
        if self.accelerator.num_processes > 1:
            # Every process takes part, also one whose batch left a gradient out.
            for parameter in (p for p in self.parameters if p.requires_grad):
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(grad, "sum")
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if grads:
            torch._foreach_div_(grads, weight or 1.0)
        limit = self.section.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise TrainingError(
                f"the gradient's norm is {norm} at step {self.progress.step + 1}. Lower train.learning_rate "
                f"(now {self.section.learning_rate:g}); `--resume` continues from the last checkpoint."
            )
        self.scaled.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _validate(self) -> None:
        """Measure validation and training loss of the weights that would be kept, remember the best weights.

        Raises:
            TrainingError: the validation loss is not finite.
        """
        assert self.validation is not None
        assert self.sample is not None
        progress, patience = self.progress, self.section.early_stopping
        with self.regularizers.evaluating():
            if self.regularizers.evaluate_others:
                share_statistics(self.accelerator, self.module)
            loss = mean_loss(self.accelerator, self.module, self.validation, self.section.batch_size)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the validation loss is {loss} at step {progress.step}. Lower train.learning_rate "
                    f"(now {self.section.learning_rate:g}) or use train.precision float32."
                )
            # On rows that were trained on, without dropout and augmentation, so that the gap compares like with like.
            train = mean_loss(self.accelerator, self.module, self.sample, self.section.batch_size)
            better = progress.best_loss is None or loss < progress.best_loss
            if better and self.section.keep_best and self.accelerator.is_main_process:
                save_best(self.run, self.module)
        if better:
            progress.best_loss, progress.best_step = loss, progress.step
        if progress.level is None or loss < progress.level - (patience.min_delta if patience else 0.0):
            progress.level, progress.bad_validations = loss, 0
        else:
            progress.bad_validations += 1
        self._record({"step": progress.step, "epoch": progress.epoch, "validation_loss": loss, "training_loss": train})
        self.listener.message(f"step {progress.step}: validation loss {loss:.4f}{' (best)' if better else ''}")

    def _record(self, line: dict[str, Any]) -> None:
        """Write a line of metrics, in the main process."""
        if self.accelerator.is_main_process:
            self.run.append_metrics(line)
            if self.trackers is not None:
                self.trackers.log(line)

    def _measure(self) -> dict[str, float]:
        """Measure the weights as they are, for regularizers that choose among some."""
        splits = {"validation_loss": self.validation, "general_loss": self.general}
        return {
            name: mean_loss(self.accelerator, self.module, split, self.section.batch_size)
            for name, split in splits.items()
            if split is not None
        }

    def _patience_is_over(self) -> bool:
        stopping = self.section.early_stopping
        return stopping is not None and self.progress.bad_validations >= stopping.patience

    def _save(self, clock: _Clock) -> None:
        self.progress.seconds = clock.seconds()
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            keep, tensors = self.section.keep_checkpoints, self.regularizers.tensors()
            save_checkpoint(self.run, self.progress, self.module, self.optimizer, keep, tensors)

    def _keep_weights(self) -> None:
        """End with the weights of the best validation loss, else with those that are evaluated after the last step."""
        progress = self.progress
        self.accelerator.wait_for_everyone()  # the main process may still be writing them
        if self.section.keep_best and progress.best_step not in (None, progress.step):
            load_best(self.run, self.module)
            self.listener.message(f"keeping the weights of step {progress.best_step} (lowest validation loss)")
        elif self.regularizers.evaluate_others:
            with self.regularizers.evaluating():
                train_mode(self.module)
                share_statistics(self.accelerator, self.module)
                kept = {name: tensor.detach().clone() for name, tensor in state_tensors(self.module).items()}
            copy_into(state_tensors(self.module), kept, "the weights to keep")


def _fused(parameters: Sequence[Tensor]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


class _Clock:
    """Seconds of training, continued over resumes."""

    def __init__(self, before: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._start = now, now() - before

    def seconds(self) -> float:
        return self._now() - self._start
