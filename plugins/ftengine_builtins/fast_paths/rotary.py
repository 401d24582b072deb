"""Rotary embeddings of a model that trains on a CPU, by one compiled operation each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ftengine.api import FastPath, FastPathTraits, LoadedModel, TrainingContext
from ftengine.ops.elementwise import rotate
from ftengine_builtins.fast_paths.cpu import DTYPES, require_kernels

FUNCTION = "apply_rotary_pos_emb"
"""What a module of transformers calls with queries, keys, cosines and sines; each file of theirs has its own."""


class CpuRotary(FastPath):
    """Rotary embeddings on a CPU by one compiled operation each (Su et al. 2021, arXiv:2104.09864)."""

    name = "cpu-rotary"
    traits = FastPathTraits(supports_sharding=True)

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        """Put another function where attention's forwards look theirs up; models of the same files call it as well."""
        places, layers = list[tuple[dict[str, Any], Any]](), 0
        try:
            for module in loaded.module.modules():
                forward = inspect.unwrap(type(module).forward)
                names: dict[str, Any] = getattr(forward, "__globals__", {})
                if FUNCTION not in getattr(getattr(forward, "__code__", None), "co_names", ()) or FUNCTION not in names:
                    continue
                if not any(names is place for place, _ in places):
                    original = names[FUNCTION]
                    if not _is_rotation(original):
                        continue
                    places.append((names, original))
                    names[FUNCTION] = _instead_of(original)
                layers += 1
            yield {"attention layers": layers} if layers else None
        finally:
            for names, original in places:
                names[FUNCTION] = original


def _instead_of(original: Callable[..., Any]) -> Callable[..., Any]:
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not all(_fits(x, cos, sin) for x in (q, k)):
            return original(q, k, cos, sin, *args, **kwargs)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return rotated


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in DTYPES or x.dim() != 4 or cos.dim() != 3 or cos.requires_grad:
        return False
    batch, _, length, depth = x.shape
    angles = cos.shape == sin.shape and cos.shape[0] in (1, batch) and cos.shape[1:] == (length, depth)
    return angles and cos.dtype == sin.dtype == x.dtype and depth % 2 == 0


@torch.no_grad()
def _is_rotation(function: Callable[..., Any]) -> bool:
    """Say whether a function, which is linear in queries and keys, turns halves as `rotate` does."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 8), (2, 1, 5, 8), (2, 5, 8), (2, 5, 8)
    q, k, cos, sin = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    try:
        found = function(q, k, cos, sin)
        return all(torch.allclose(one, rotate(x, cos, sin)) for one, x in zip(found, (q, k), strict=True))
    except Exception:  # it takes something else, and may say so in any way
        return False
