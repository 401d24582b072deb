"""How long and how much memory a run will take, measured on a few of its own batches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ftengine.api import Task
from ftengine.data.batching import ordered_batches
from ftengine.data.encoding import EncodedSplit
from ftengine.parameters import trainable
from ftengine.training.losses import to_device
from ftengine.training.modes import train_mode

ADAM_BYTES = 8
"""AdamW keeps two float32 moments for each trainable parameter."""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take.

    Args:
        train_seconds: all optimiser steps, without evaluation.
        evaluate_seconds: validations during training, and base and tuned on the held-out split.
        weight_bytes: all parameters as they are stored.
        optimizer_bytes: gradients and optimiser state.
        activation_bytes: what the largest micro-batch keeps for its backward pass.
    """

    train_seconds: float
    evaluate_seconds: float
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(
    accelerator: Accelerator,
    module: nn.Module,
    task: Task,
    train: EncodedSplit,
    batch_size: int,
    train_tokens: float,
    evaluate_tokens: float,
) -> Estimate:
    """Time forward and backward on a micro-batch of median length and scale by tokens.

    The model's weights stay as they are; its gradients are dropped. Attention grows faster than by tokens, so
    where the longest examples are far longer than most, memory is estimated low.

    Args:
        train_tokens: tokens of the whole training.
        evaluate_tokens: tokens of all evaluations.
    """
    batches = ordered_batches(train.lengths, batch_size)
    typical, largest = batches[len(batches) // 2], batches[0]
    train_mode(module)
    _step(accelerator, module, task, train, typical)  # the first call allocates and warms caches
    seconds, forward, saved = _step(accelerator, module, task, train, typical)
    per_token = seconds / float(train.lengths[typical].sum())
    share = forward / seconds
    growth = float(train.lengths[largest].max() * len(largest)) / float(train.lengths[typical].max() * len(typical))
    parameters = list(module.parameters())
    trained = sum(p.numel() for p in trainable(module).values())
    module.zero_grad(set_to_none=True)
    return Estimate(
        train_seconds=per_token * train_tokens,
        evaluate_seconds=per_token * share * evaluate_tokens,
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        optimizer_bytes=trained * (4 + ADAM_BYTES),
        activation_bytes=int(saved * growth),
    )


def _step(
    accelerator: Accelerator, module: nn.Module, task: Task, split: EncodedSplit, members: Any
) -> tuple[float, float, int]:
    """Run one forward and backward; return (seconds, seconds of the forward, bytes saved between the two)."""
    batch = to_device(split.batch(members), accelerator.device)
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    with accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_sum, _ = task.loss(module, batch)
    _settle(accelerator)
    forward = time.perf_counter() - start
    loss_sum.backward()
    _settle(accelerator)
    return time.perf_counter() - start, forward, sum(saved.values())


def _settle(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
