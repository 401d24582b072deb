"""Temporary evaluation mode and random seeds, and detecting changes to a module."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STATISTICS = "running_mean", "running_var"
"""What PyTorch's and timm's layers call the buffers of statistics that training moves."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and restore each module's mode afterwards, as some may be in evaluation mode already."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def has_running_statistics(layer: nn.Module) -> bool:
    """Return whether a layer keeps a running mean or variance, as BatchNorm does (EvoNorm keeps a variance)."""
    return any(getattr(layer, name, None) is not None for name in STATISTICS)


def drops(layer: nn.Module) -> dict[str, float]:
    """Return the rates at which a layer itself drops activations, or branches (stochastic depth), while it trains."""
    of_p = isinstance(layer, nn.modules.dropout._DropoutNd) or type(layer).__name__ == "StochasticDepth"
    return {
        name: value
        for name, value in vars(layer).items()
        if ("drop" in name or (name == "p" and of_p)) and isinstance(value, float) and 0 < value < 1
    }


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's generators of the CPU and of a CUDA device, and restore both afterwards.

    Generators of other devices are not touched, unlike by `torch.manual_seed`; seed None changes nothing.
    """
    if seed is None:
        yield
        return
    generators: list[Any] = [torch.default_generator]
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python afterwards."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def widen(values: Tensor) -> Tensor:
    """Return numbers in at least fp32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def hooks(part: nn.Module) -> int:
    """Return the number of a module's hooks, without those of its submodules."""
    return sum(len(getattr(part, name)) for name in HOOKS)
