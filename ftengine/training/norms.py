"""RMS norms of a model that trains on a CPU, computed by one compiled operation wherever a module is just that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.model import RMSNorm, rms_norm_of
from ftengine.ops import active_backend
from ftengine.ops.elementwise import rms_norm

DTYPES = (torch.float32, torch.bfloat16)
"""What there are kernels for."""


def fuse_norms(model: nn.Module) -> list[nn.Module]:
    """Let each RMS norm of a model compute in one operation, where kernels are compiled; return those that do.

    The modules keep their class, parameters and hooks. `restore_norms` undoes it.
    """
    if active_backend("cpu")[0] != "compiled":
        return []
    fused = []
    for module in model.modules():
        own = next(iter(module._parameters.values()), None)
        if own is None or own.device.type != "cpu" or "forward" in vars(module):
            continue
        norm = rms_norm_of(module, DTYPES)
        if norm is not None:
            vars(module)["forward"] = _forward(type(module).forward, norm).__get__(module)
            fused.append(module)
    return fused


def restore_norms(fused: list[nn.Module]) -> None:
    """Let norms compute as they did."""
    while fused:
        vars(fused.pop()).pop("forward", None)


def _forward(original: Callable[..., Any], norm: RMSNorm) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = next(iter(self._parameters.values()))
        if args or kwargs or weight is None or x.device.type != "cpu" or x.dtype not in norm.dtypes:
            return original(self, x, *args, **kwargs)
        return rms_norm(x, weight, norm.offset, norm.eps)

    return forward
