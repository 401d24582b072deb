"""What kernels of a CPU need."""

from __future__ import annotations

import torch

from ftengine.errors import RecipeError
from ftengine.ops import active_backend

DTYPES = (torch.float32, torch.bfloat16)
"""What there are kernels for."""


def require_kernels(name: str, device: torch.device) -> None:
    """Refuse a device that is no CPU, or has no compiled kernels (RecipeError)."""
    if device.type != "cpu":
        raise RecipeError(f"fast path {name!r} is for CPUs, and the model computes on {device}")
    backend, reason = active_backend("cpu")
    if backend != "compiled":
        raise RecipeError(f"fast path {name!r} needs compiled kernels: {reason}")
