"""Matrix products of a model that trains in float32 on a CPU, by oneDNN where torch's own are slower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ftengine.api import FastPath, FastPathTraits, LoadedModel, TrainingContext
from ftengine.errors import RecipeError
from ftengine.ops import onednn_from, products_by_onednn
from ftengine_builtins.fast_paths.cpu import require_kernels


class CpuProducts(FastPath):
    """Products of large float32 matrices by oneDNN, on processors with AVX-512 for which MKL does not use it."""

    name = "cpu-products"
    traits = FastPathTraits(supports_sharding=True)

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)
        if onednn_from() is None:
            raise RecipeError(
                f"fast path {self.name!r} is for processors with AVX-512 whose products MKL does not use it for"
            )

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        layers = sum(map(_multiplies, loaded.module.modules())) if context.dtype == torch.float32 else 0
        if not layers:
            yield None
            return
        with products_by_onednn():
            yield {"layers": layers}


def _multiplies(module: nn.Module) -> bool:
    """Say whether a module has a matrix of its own that its input is multiplied by."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding)
