"""RMS norms of a model that trains on a CPU, each computed by one compiled operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import FastPath, LoadedModel, TrainingContext
from ftengine.model import RMSNorm, rms_norm_of
from ftengine.ops.elementwise import rms_norm
from ftengine_builtins.fast_paths.cpu import DTYPES, Forward, other_forwards, require_kernels


class CpuNorms(FastPath):
    """RMS norms on a CPU by one compiled operation each (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    name = "cpu-norms"

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        with other_forwards(loaded.module, _forward_of) as norms:
            yield {"RMS norms": norms} if norms else None


def _forward_of(module: nn.Module) -> Forward | None:
    weight = next(iter(module._parameters.values()), None)
    norm = rms_norm_of(module, DTYPES) if weight is not None and weight.device.type == "cpu" else None
    return None if norm is None else _forward(type(module).forward, norm)


def _forward(original: Forward, norm: RMSNorm) -> Forward:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = next(iter(self._parameters.values()))
        if args or kwargs or weight is None or x.device.type != "cpu" or x.dtype not in norm.dtypes:
            return original(self, x, *args, **kwargs)
        return rms_norm(x, weight, norm.offset, norm.eps)

    return forward
