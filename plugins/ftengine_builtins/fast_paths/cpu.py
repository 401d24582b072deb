"""Shared by fast paths for CPUs: required kernels, and modules with another `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ftengine.errors import RecipeError
from ftengine.ops import active_backend

DTYPES = (torch.float32, torch.bfloat16)
"""What there are kernels for."""

Forward = Callable[..., Any]
"""A module's `forward`, with the module as its first argument."""


def require_kernels(name: str, device: torch.device) -> None:
    """Refuse a device other than a CPU, or without compiled kernels (RecipeError)."""
    if device.type != "cpu":
        raise RecipeError(f"fast path {name!r} is for CPUs, and the model computes on {device}")
    backend, reason = active_backend("cpu")
    if backend != "compiled":
        raise RecipeError(f"fast path {name!r} needs compiled kernels: {reason}")


@contextmanager
def other_forwards(model: nn.Module, forward_of: Callable[[nn.Module], Forward | None]) -> Iterator[int]:
    """Replace the `forward` of modules by those that a function returns for them; yields their number.

    They keep their class, parameters and hooks. Modules with a `forward` of their own already keep it.
    """
    changed = list[nn.Module]()
    try:
        for module in model.modules():
            forward = None if "forward" in vars(module) else forward_of(module)
            if forward is not None:
                vars(module)["forward"] = forward.__get__(module)  # type: ignore[attr-defined]
                changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            vars(module).pop("forward", None)
