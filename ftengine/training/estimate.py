"""How long and how much memory a run will take, measured on a few of its own batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ftengine.api import LoadedModel, Regularizer, Task
from ftengine.data.batching import ordered_batches
from ftengine.data.encoding import EncodedSplit
from ftengine.model import trainable
from ftengine.training.losses import loss_of, to_device
from ftengine.training.modes import train_mode
from ftengine.training.regularizing import Attached

GRADIENT_BYTES = 4
"""What trains has gradients in float32, as it is itself."""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take.

    Args:
        train_seconds: all optimiser steps, without evaluation.
        evaluate_seconds: validations during training, and base and tuned afterwards, without free answers.
        weight_bytes: all parameters as they are stored.
        optimizer_bytes: gradients and optimiser state.
        backward_share: of a micro-batch's time, what its backward pass takes.
        activation_bytes: what the largest micro-batch keeps for its backward pass.
    """

    train_seconds: float
    evaluate_seconds: float
    backward_share: float
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(
    accelerator: Accelerator,
    loaded: LoadedModel,
    task: Task,
    regularizers: Sequence[Regularizer],
    train: EncodedSplit,
    batch_size: int,
    train_tokens: float,
    evaluate_tokens: float,
    state_bytes: int,
) -> Estimate:
    """Time forward and backward on a micro-batch of median length, augmented and regularized, and scale by tokens.

    The model's weights stay as they are; its gradients are dropped. Attention grows faster than by tokens, so
    where the longest examples are far longer than most, memory is estimated low.

    Args:
        regularizers: attached while it is timed.
        train_tokens, evaluate_tokens: tokens of the whole training, and of all evaluations; processes share them.
        state_bytes: of the optimiser's state.
    """
    module = loaded.module
    batches = ordered_batches(train.lengths, batch_size)
    typical, largest = batches[len(batches) // 2], batches[0]
    attached = Attached(regularizers, loaded, task)
    try:
        train_mode(module)
        _step(accelerator, loaded, task, attached, train, typical)  # the first call allocates and warms caches
        seconds, forward, backward, saved = _step(accelerator, loaded, task, attached, train, typical)
    finally:
        attached.detach()
        module.zero_grad(set_to_none=True)
    tokens = float(train.lengths[typical].sum()) * accelerator.num_processes  # that they read meanwhile
    growth = float(train.lengths[largest].max() * len(largest)) / float(train.lengths[typical].max() * len(typical))
    trained = sum(p.numel() for p in trainable(module).values())
    return Estimate(
        train_seconds=seconds / tokens * train_tokens,
        evaluate_seconds=forward / tokens * evaluate_tokens,
        backward_share=backward / seconds,
        weight_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
        optimizer_bytes=trained * GRADIENT_BYTES + state_bytes,
        activation_bytes=int(saved * growth),
    )


def _step(
    accelerator: Accelerator,
    loaded: LoadedModel,
    task: Task,
    regularizers: Attached,
    split: EncodedSplit,
    members: np.ndarray,
) -> tuple[float, float, float, int]:
    """Run one forward and backward; return seconds in all, of one forward pass, of backward, and bytes saved for it."""
    module = loaded.module
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    batch = to_device(split.batch(members, 0), accelerator.device)
    made = time.perf_counter()
    with accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_sum, weight = loss_of(task, module, batch, regularizers.criterion)
        _settle(accelerator)
        forward = (time.perf_counter() - made) / regularizers.criterion.passes
        penalty = regularizers.penalty(batch, loss_sum / weight)
    _settle(accelerator)
    ahead = time.perf_counter()
    (loss_sum if penalty is None else loss_sum + penalty * weight).backward()
    _settle(accelerator)
    end = time.perf_counter()
    return end - start, forward, end - ahead, sum(saved.values())


def _settle(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
