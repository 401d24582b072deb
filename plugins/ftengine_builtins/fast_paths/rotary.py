"""Rotary embeddings of a model on a CPU, by one compiled operation each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import FastPathTraits
from ftengine.equivalence import REORDERED, distance
from ftengine.ops.elementwise import rotate
from ftengine_builtins.fast_paths.cpu import DTYPES, CpuKernels

FUNCTION = "apply_rotary_pos_emb"
"""What a module of transformers calls with queries, keys, cosines and sines; each file of theirs has its own."""


class CpuRotary(CpuKernels):
    """Rotary embeddings on a CPU by one compiled operation each (Su et al. 2021, arXiv:2104.09864)."""

    name = "cpu-rotary"
    traits = FastPathTraits(supports_sharding=True)
    counted = "attention layers"

    @contextmanager
    def replaced(self, model: nn.Module) -> Iterator[int]:
        """Replace the function that attention's forward uses; other models of the same files use it as well."""
        layers = 0
        with ExitStack() as stack:
            for module in model.modules():
                forward = inspect.unwrap(type(module).forward)
                names: dict[str, Any] = getattr(forward, "__globals__", {})
                if FUNCTION in getattr(getattr(forward, "__code__", None), "co_names", ()) and FUNCTION in names:
                    layers += stack.enter_context(_replaced(names))
            yield layers


_replaced_by: dict[int, tuple[Callable[..., Any], int]] = {}
"""By the id of a module's names: its own function, and how often it is replaced at the time."""
_changing = Lock()


@contextmanager
def _replaced(names: dict[str, Any]) -> Iterator[bool]:
    """Replace a file's function until the last user leaves; yields whether it rotates halves."""
    key = id(names)
    with _changing:
        original, count = _replaced_by.get(key, (names[FUNCTION], 0))
        if may := count > 0 or _is_rotation(original):
            _replaced_by[key] = original, count + 1
            names[FUNCTION] = _instead_of(original)
    try:
        yield may
    finally:
        if may:
            with _changing:
                original, count = _replaced_by.pop(key)
                if count > 1:
                    _replaced_by[key] = original, count - 1
                else:
                    names[FUNCTION] = original


def _instead_of(original: Callable[..., Any]) -> Callable[..., Any]:
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not all(_fits(x, cos, sin) for x in (q, k)):
            return original(q, k, cos, sin, *args, **kwargs)
        # Under autocast, a model's angles may be wider than its queries, and so is what it makes of both.
        return rotate(q.to(cos.dtype), cos, sin), rotate(k.to(cos.dtype), cos, sin)

    return rotated


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in DTYPES or x.dim() != 4 or cos.dim() != 3 or cos.requires_grad:
        return False
    batch, _, length, depth = x.shape
    angles = cos.shape == sin.shape and cos.shape[0] in (1, batch) and cos.shape[1:] == (length, depth)
    wide = torch.promote_types(x.dtype, cos.dtype) == cos.dtype == sin.dtype and cos.dtype in DTYPES
    return angles and wide and depth % 2 == 0


@torch.no_grad()
def _is_rotation(function: Callable[..., Any]) -> bool:
    """Return whether a function, which is linear in queries and keys, rotates halves as `rotate` does."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 8), (2, 1, 5, 8), (2, 5, 8), (2, 5, 8)
    q, k, cos, sin = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    try:
        found = function(q, k, cos, sin)
        return all(
            distance(rotated, rotate(x, cos, sin)) <= REORDERED for rotated, x in zip(found, (q, k), strict=True)
        )
    except Exception:  # it takes something else, and may say so in any way
        return False
