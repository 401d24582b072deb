"""Estimates of a run's time and memory, measured on a few of its own batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from ftengine.api import LoadedModel, Optimizer, Regularizer, Task
from ftengine.data.batching import micro_batches
from ftengine.data.encoding import EncodedSplit
from ftengine.model import trainable
from ftengine.parallel.device import to_device
from ftengine.run.environment import peak_memory_bytes
from ftengine.run.recipe import TrainSection
from ftengine.training.fast_paths import FastPaths
from ftengine.training.losses import loss_of
from ftengine.training.memory import PeakMemory, available_bytes, release_memory
from ftengine.training.modes import statistics_kept, train_mode
from ftengine.training.optimizer import Groups, build_optimizer, optimizer_bytes
from ftengine.training.regularizing import Attached
from ftengine.training.steps import Steps, batch_tokens

GRADIENT_BYTES = 4
"""Bytes of a gradient: trainable parameters and their gradients are float32."""

PLANNED_EPOCHS = 3
"""Epochs whose batches are examined; later ones are similar."""


LOOKED_AT = 32
"""Effective batches that are collated to count the tokens that are computed."""


def planned_batches(train: EncodedSplit, seed: int, steps: Steps) -> list[np.ndarray]:
    """Return the effective batches of a run's first epochs."""
    batches: list[np.ndarray] = []
    for epoch in range(PLANNED_EPOCHS):
        batches += train.epoch(steps.batch, seed, epoch)
        if len(batches) >= steps.total:
            break
    return batches[: steps.total]


def _some(batches: list[np.ndarray], lengths: np.ndarray) -> list[np.ndarray]:
    """Return a few effective batches, including the one with the longest example."""
    longest = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    return [batches[i] for i in sorted({longest, *range(0, len(batches), -(-len(batches) // LOOKED_AT))})]


@dataclass(frozen=True)
class Passed:
    """Seconds of both passes, the forward and the backward pass; bytes held before, and at the peak."""

    seconds: float
    forward: float
    backward: float
    held: int
    peak: int


class Trial:
    """Forward and backward passes on micro-batches of a run, after which the model is restored.

    Args:
        regularizers: attached during the passes.
        optimizer, groups: the optimiser, whose state will take memory in training but does not exist yet.
        fast_paths: active during the passes.
        beside: bytes that an on-policy task holds in training, and those that drawing takes beyond them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loaded: LoadedModel,
        task: Task,
        regularizers: Sequence[Regularizer],
        train: EncodedSplit,
        section: TrainSection,
        seed: int,
        steps: Steps,
        optimizer: Optimizer,
        groups: Groups,
        fast_paths: FastPaths,
        beside: tuple[int, int] = (0, 0),
    ) -> None:
        self.accelerator, self.loaded, self.task, self.train = accelerator, loaded, task, train
        self.steps, self.optimizer, self.groups = steps, optimizer, groups
        self.state_bytes, self._beside = optimizer_bytes(optimizer, groups), beside
        self.fast_paths, fewer = fast_paths, fast_paths.compute_fewer_tokens
        planned, ranks = planned_batches(train, seed, steps), accelerator.num_processes
        if fewer:  # only collated batches show by how much
            planned = _some(planned, train.lengths)
        tokens = batch_tokens(section, accelerator.device)
        computed = (lambda some: fast_paths.computed_tokens(train.batch(some, 0))) if fewer else None
        order = (lambda some: fast_paths.ordered(some, train.batch(some, 0))) if fewer else None
        with fast_paths.active():
            micro = [  # the first process has the longest examples of each step
                (self.size(part), part)
                for batch in planned
                for part in micro_batches(
                    batch,
                    section.batch_size,
                    0,
                    ranks,
                    lengths=train.lengths,
                    tokens=tokens,
                    computed=computed,
                    order=order,
                )
            ]
        micro.sort(key=lambda candidate: candidate[0])
        self.sizes, self.batches = [size for size, _ in micro], [part for _, part in micro]
        self.steps_looked_at = len(planned)
        self._regularizers, self._keeps_gradients = regularizers, len(micro) > len(planned)
        self.passes: dict[int, Passed] = {}

    def size(self, members: np.ndarray) -> int:
        """Return how many tokens of a micro-batch, with padding, are computed while fast paths are active."""
        fewer = self.fast_paths.compute_fewer_tokens
        computed = self.fast_paths.computed_tokens(self.train.batch(members, 0)) if fewer else None
        return computed or int(self.train.lengths[members].max()) * len(members)

    @contextmanager
    def attached(self) -> Iterator[Attached]:
        """Attach the regularizers; afterwards restore running statistics."""
        module = self.loaded.module
        with statistics_kept(module):
            attached = Attached(self._regularizers, self.loaded, self.task)
            try:
                with self.fast_paths.active():
                    train_mode(module)
                    yield attached
            finally:
                attached.detach()
                module.zero_grad(set_to_none=True)

    def run(self, regularizers: Attached, members: np.ndarray) -> Passed:
        """Run one forward and backward pass; its figures replace those of an earlier pass of the same size."""
        module, accelerator = self.loaded.module, self.accelerator
        if not self._keeps_gradients:
            module.zero_grad(set_to_none=True)
        with PeakMemory(accelerator.device) as memory:
            start = time.perf_counter()
            batch = to_device(self.train.batch(members, 0), accelerator.device)
            encoded_at = time.perf_counter()
            with accelerator.autocast():
                loss_sum, weight = loss_of(self.task, module, batch, regularizers.criterion)
                _settle(accelerator)
                forward = (time.perf_counter() - encoded_at) / regularizers.criterion.passes
                penalty = regularizers.penalty(batch, loss_sum / weight)
            _settle(accelerator)
            ahead = time.perf_counter()
            (loss_sum if penalty is None else loss_sum + penalty * weight).backward()
            _settle(accelerator)
            end = time.perf_counter()
        passed = Passed(end - start, forward, end - ahead, memory.held, memory.peak)
        self.passes[self.size(members)] = passed
        return passed

    def memory(self, regularizers: Attached, most: int) -> tuple[int, int]:
        """Return the bytes that the process holds now, and the most that it will hold in training.

        The peak is measured on the largest micro-batch. If extrapolation from the median one exceeds `most`, it is
        extrapolated by tokens instead; the median one is skipped if the smallest one already predicts half of `most`.
        """
        passes = list[Passed]()
        for i in (0, len(self.batches) // 2):
            release_memory()  # memory left by earlier measurements would be reused by the next pass
            passes.append(passed := self.run(regularizers, self.batches[i]))
            peak = passed.held + int((passed.peak - passed.held) * self.sizes[-1] / self.sizes[i])
            if peak + self.state_bytes <= (most if i else most // 2):
                peak = self.run(regularizers, self.batches[-1]).peak
                break
        return passes[0].held, peak + self.state_bytes

    def drawing(self, held: int, peak: int) -> int:
        """Return the bytes by which drawing answers, and what that needs, raises the peak of training."""
        kept, drawn = self._beside
        return kept + max(0, held + self.state_bytes + drawn - peak)

    def optimizer_seconds(self) -> float:
        """Return the seconds of an optimiser step with the last gradients; it changes the weights."""
        optimizer = build_optimizer(self.optimizer, self.groups)
        for _ in range(2):  # the first creates the state
            start = time.perf_counter()
            torch.nn.utils.clip_grad_norm_(trainable(self.loaded.module).values(), 1.0)
            optimizer.step()
            _settle(self.accelerator)
        return time.perf_counter() - start


@dataclass(frozen=True)
class RunEstimate:
    """The expected time and memory of a run.

    Args:
        train_seconds: all optimiser steps, without evaluation.
        evaluate_seconds: validations during training, and base and tuned afterwards, without generations.
        backward_seconds: backward pass of a step's last micro-batch, during which gradients can already be sent.
        weight_bytes: all parameters in their dtypes.
        optimizer_bytes: gradients and optimiser state.
        activation_bytes: memory of the largest micro-batch beyond these.
        drawing_bytes: of an on-policy task, what drawing its answers takes beyond what then is free of these, and the
            copy of the trained tensors that a reference needs.
        other_bytes: memory of the process before training without the weights; on a CPU, Python and its libraries.
        peak_bytes: the sum of these, or the peak of loading the model if that is larger.
    """

    train_seconds: float
    evaluate_seconds: float
    backward_seconds: float
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    drawing_bytes: int
    other_bytes: int
    peak_bytes: int


def estimate(trial: Trial, evaluate_tokens: float) -> RunEstimate:
    """Time micro-batches of smallest, largest and median size, and the optimiser; this changes the trained weights.

    Times of other sizes are interpolated by tokens with padding. The smallest runs first, since the first pass
    allocates memory and warms caches; its time is limited to that of larger ones.

    Args:
        evaluate_tokens: of all evaluations; processes share them.
    """
    module, batches, accelerator = trial.loaded.module, trial.batches, trial.accelerator
    most, sizes, median = available_bytes(accelerator.device), trial.sizes, batches[len(batches) // 2]
    with trial.attached() as attached:
        resident, peak = trial.memory(attached, most)
        typical = trial.run(attached, median)
        drawing = trial.drawing(resident, peak)
        update = trial.optimizer_seconds() if peak + drawing <= most else 0.0
    passes = dict(sorted(trial.passes.items()))
    timed = np.minimum.accumulate([passed.seconds for passed in passes.values()][::-1])[::-1]
    seconds = np.interp(sizes, list(passes), timed)
    seconds *= np.maximum(1.0, np.array(sizes) / max(passes))  # larger than any that was timed
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    held_in_training = GRADIENT_BYTES * sum(p.numel() for p in trainable(module).values()) + trial.state_bytes
    tokens = float(trial.train.lengths[median].sum()) * accelerator.num_processes
    return RunEstimate(
        train_seconds=(float(seconds.sum()) / trial.steps_looked_at + update) * trial.steps.total,
        evaluate_seconds=typical.forward / tokens * evaluate_tokens,
        backward_seconds=float(seconds.mean()) * typical.backward / typical.seconds,
        weight_bytes=weights,
        optimizer_bytes=held_in_training,
        activation_bytes=max(0, peak - resident - held_in_training),
        drawing_bytes=drawing,
        other_bytes=max(0, resident - weights),
        peak_bytes=max(peak + drawing, peak_memory_bytes()),
    )


def _settle(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
