"""RMS norms of a model on a CPU, each computed by one compiled operation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ftengine.model import RMSNorm, rms_norm_of
from ftengine.ops.elementwise import rms_norm
from ftengine_builtins.fast_paths.cpu import DTYPES, CpuKernels, Forward, other_forwards


class CpuNorms(CpuKernels):
    """RMS norms on a CPU by one compiled operation each (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    name = "cpu-norms"
    counted = "RMS norms"

    def replaced(self, model: nn.Module) -> AbstractContextManager[int]:
        return other_forwards(model, _forward_of)


_found: WeakKeyDictionary[nn.Module, tuple[Any, Forward | None]] = WeakKeyDictionary()
"""By module what it was when it was looked at, and its `forward` by the kernel; None where it is no norm."""


def _forward_of(module: nn.Module) -> Forward | None:
    weight = next(iter(module._parameters.values()), None)
    if weight is None or weight.device.type != "cpu":
        return None
    state = type(module), weight.dtype, weight.shape
    if module not in _found or _found[module][0] != state:
        norm = rms_norm_of(module, DTYPES)
        _found[module] = state, None if norm is None else _forward(type(module).forward, norm)
    return _found[module][1]


def _forward(original: Forward, norm: RMSNorm) -> Forward:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = next(iter(self._parameters.values()))
        if args or kwargs or weight is None or x.device.type != "cpu" or x.dtype not in norm.dtypes:
            return original(self, x, *args, **kwargs)
        return rms_norm(x, weight, norm.offset, norm.eps)

    return forward
