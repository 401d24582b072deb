"""Gated blocks of a model on a CPU: the gate's activation and product by one compiled operation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ftengine.model import gated_block_of
from ftengine.ops.elementwise import silu_mul
from ftengine_builtins.fast_paths.cpu import DTYPES, CpuKernels, Forward, other_forwards

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where an activation has what wants to see it called."""


class CpuGates(CpuKernels):
    """Gated blocks on a CPU: silu(gate) * up by one compiled operation (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    name = "cpu-gates"
    counted = "gated blocks"

    def replaced(self, model: nn.Module) -> AbstractContextManager[int]:
        return other_forwards(model, _forward_of)


def _forward_of(module: nn.Module) -> Forward | None:
    block = gated_block_of(module)
    return None if block is None or not _is_silu(module.get_submodule(block.activation)) else _forward(*block)


def _is_silu(activation: Any) -> bool:
    """Return whether an activation is x σ(x), by its values at numbers of several sizes."""
    x = torch.linspace(-30, 30, 301)
    try:
        return isinstance(activation, nn.Module) and torch.equal(activation(x), silu(x))
    except Exception:  # it takes something else, and may say so in any way
        return False


def _forward(down: str, activation: str, gate: str, up: str) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Any:
        one, other, act = getattr(self, gate)(x), getattr(self, up)(x), getattr(self, activation)
        alike = (
            one.device.type == "cpu" and one.dtype in DTYPES and one.dtype == other.dtype and one.shape == other.shape
        )
        if not alike or "forward" in vars(act) or any(getattr(act, name) for name in HOOKS):
            return getattr(self, down)(act(one) * other)
        return getattr(self, down)(silu_mul(one, other))

    return forward
