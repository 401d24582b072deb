"""RMS norms of a model that trains on a CPU, computed by one compiled operation wherever a module is just that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import FastPath, LoadedModel, TrainingContext
from ftengine.model import RMSNorm, rms_norm_of
from ftengine.ops.elementwise import rms_norm
from ftengine_builtins.fast_paths.cpu import DTYPES, require_kernels


class CpuNorms(FastPath):
    """RMS norms on a CPU by one compiled operation each (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    name = "cpu-norms"

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        """Give each RMS norm another `forward`; modules keep their class, parameters and hooks."""
        fused = list[nn.Module]()
        try:
            for module in loaded.module.modules():
                own = next(iter(module._parameters.values()), None)
                if own is None or own.device.type != "cpu" or "forward" in vars(module):
                    continue
                norm = rms_norm_of(module, DTYPES)
                if norm is not None:
                    vars(module)["forward"] = _forward(type(module).forward, norm).__get__(module)
                    fused.append(module)
            yield {"RMS norms": len(fused)} if fused else None
        finally:
            for module in fused:
                vars(module).pop("forward", None)


def _forward(original: Callable[..., Any], norm: RMSNorm) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = next(iter(self._parameters.values()))
        if args or kwargs or weight is None or x.device.type != "cpu" or x.dtype not in norm.dtypes:
            return original(self, x, *args, **kwargs)
        return rms_norm(x, weight, norm.offset, norm.eps)

    return forward
