"""Modes of a model in training: training mode, frozen parameters, running statistics, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ftengine.api import Strategy
from ftengine.errors import RecipeError
from ftengine.model import has_running_statistics, trainable
from ftengine.model.modes import STATISTICS
from ftengine.model.parameters import computed_from
from ftengine.training.steps import Steps


def draw_randomness(*path: int) -> None:
    """Seed every generator from numbers such as (seed, step, process), so that randomness is reproducible."""
    set_seed(int(np.random.SeedSequence(path).generate_state(1)[0]))


def train_mode(module: nn.Module) -> None:
    """Set training mode, but do not update statistics (BatchNorm, spectral norm) unless all of their module trains.

    If only biases train, updated statistics would make the result depend on the size of a micro-batch.
    """
    module.train()
    owners = computed_from(module)
    for part in module.modules():
        if _may_move(part):
            trains = [p.requires_grad for p in owners.get(part, part).parameters(recurse=part not in owners)]
            if not trains or not all(trains):
                part.eval()


def _may_move(part: nn.Module) -> bool:
    """Return whether a layer has saved floating-point buffers, which its forward pass may update in training.

    The scales of a quantised layer, which come with packed integers, are not updated.
    """
    if any(True for _ in part.children()):
        return has_running_statistics(part)
    stored = [x for name, x in part.named_buffers(recurse=False) if name not in part._non_persistent_buffers_set]
    packed = any(not buffer.is_floating_point() and buffer.numel() > 1 for buffer in stored)
    return not packed and any(buffer.is_floating_point() for buffer in stored)


def frozen_at(strategy: Strategy, module: nn.Module, step: int, steps: Steps) -> list[nn.Parameter]:
    """Return the trainable parameters that a strategy freezes in a step; none if it has no such schedule."""
    return list(strategy.frozen_parameters(module, step, steps.total, steps.per_epoch))


def never_trained(strategy: Strategy, module: nn.Module, steps: Steps) -> str:
    """Return a message if a strategy freezes trainable tensors in every step; "" if it does not."""
    never = len(frozen_at(strategy, module, steps.total - 1, steps))
    of = f"{never} of {len(trainable(module))} trainable tensors"
    return f"{of} stay frozen for all {steps.total:,} steps" if never else ""


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Freeze trainable parameters in a step: no gradient is computed, so the optimiser skips them.

    This lasts only for the step. Everywhere else requires_grad shows what the run trains, so that optimiser,
    checkpoints and counts do not depend on the time.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Restore the buffers that forward passes update in training, such as running statistics."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


@torch.no_grad()
def share_statistics(accelerator: Accelerator, module: nn.Module) -> None:
    """Average the running statistics, which each process updated with its own batches, over all processes."""
    if accelerator.num_processes == 1:
        return
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if part.training and name in STATISTICS:
                buffer.copy_(accelerator.reduce(buffer.clone(), "mean"))


def can_checkpoint_gradients(module: nn.Module) -> bool:
    """Return whether a prepared model supports gradient checkpointing."""
    return bool(getattr(module, "supports_gradient_checkpointing", False))


def require_gradient_checkpointing(module: nn.Module) -> None:
    """Raise RecipeError if a prepared model does not support `train.gradient_checkpointing`."""
    if not can_checkpoint_gradients(module):
        kind = type(module)
        supported_by_base = getattr(kind, "supports_gradient_checkpointing", False)
        who = f"the strategy, unlike {kind.__name__} alone," if supported_by_base else kind.__name__
        raise RecipeError(f"train.gradient_checkpointing: {who} does not support it. Set it to false.")


def checkpoint_gradients(module: nn.Module) -> None:
    """Keep only each block's input for the backward pass and recompute the rest (Chen et al. 2016), or RecipeError."""
    require_gradient_checkpointing(module)
    model: Any = module
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
