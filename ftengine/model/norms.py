"""Recognition of RMS norms and gated blocks in any model, which fast paths compute by kernels.

y = (w + offset) ∘ x / sqrt(mean(x²) + eps)           (Zhang and Sennrich 2019, arXiv:1910.07467)
y = down(activation(gate(x)) * up(x))                 (Shazeer 2020, arXiv:2002.05202)

The engine compares values and gradients of a whole model before it uses a fast path (`ftengine.training.fast_paths`).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftengine.equivalence import KERNELS, rounding, row_distances

OFFSETS = (0.0, 1.0)
"""What is added to the weight; Gemma's is stored as a difference from 1."""


@dataclass(frozen=True)
class RMSNorm:
    """An RMS norm: the offset of its weight (L,), its eps, and the dtypes in which it was recognised."""

    offset: float
    eps: float
    dtypes: frozenset[torch.dtype]


class GatedBlock(NamedTuple):
    """The names of a gated block's children."""

    down: str
    activation: str
    gate: str
    up: str


GATED = (GatedBlock("down_proj", "act_fn", "gate_proj", "up_proj"), GatedBlock("w2", "act_fn", "w1", "w3"))
"""The children of transformers' gated blocks."""


def rms_norm_of(module: nn.Module, dtypes: Iterable[torch.dtype]) -> RMSNorm | None:
    """Return the parameters of a module that computes an RMS norm; None for other modules.

    A module is recognised if its class's `forward` equals the formula up to rounding, for rows of several scales and
    for at least one of `dtypes`. On the meta device, and on devices without float64, the result is None.
    """
    eps = _eps(module)
    for offset in OFFSETS if eps is not None else ():
        if matching := frozenset(dtype for dtype in dtypes if _is_norm(module, offset, eps or 0.0, dtype)):
            return RMSNorm(offset, eps or 0.0, matching)
    return None


def gated_block_of(module: nn.Module) -> GatedBlock | None:
    """Return the children of a gated block of transformers, which has no others; None for other modules.

    Its class's `forward` is called with simple functions in place of the children, and must return the formula's
    result, as some models scale or clamp in between.
    """
    if not type(module).__module__.startswith("transformers.") or module._parameters:
        return None
    names = next((names for names in GATED if module._modules.keys() == set(names)), None)
    return names if names is not None and _is_gated(module, names) else None


@torch.no_grad()
def _is_gated(module: nn.Module, names: GatedBlock) -> bool:
    def gate(x: Tensor) -> Tensor:
        return 3 * x - 1

    def up(x: Tensor) -> Tensor:
        return 20 * x.roll(1, -1)

    class Block:
        """The module with simple functions in place of its children."""

        def __getattr__(self, name: str) -> Any:
            return {names.down: torch.neg, names.gate: gate, names.up: up}.get(name) or getattr(module, name)

    x = torch.linspace(-30, 30, 64)[None]
    try:
        activation: Any = getattr(module, names.activation)
        return torch.equal(type(module).forward(Block(), x), -(activation(gate(x)) * up(x)))  # type: ignore[arg-type]
    except Exception:  # it takes something else, and may say so in any way
        return False


def _eps(module: nn.Module) -> float | None:
    """Return the only number of a module that has one vector and nothing else beside it; None otherwise."""
    kind = type(module)
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return None  # a class that a strategy made while it prepared the model
    parameters, numbers = list(module._parameters.values()), [x for x in vars(module).values() if isinstance(x, float)]
    if len(parameters) != 1 or len(numbers) != 1 or module._modules or module._buffers:
        return None
    weight = parameters[0]
    vector = isinstance(weight, nn.Parameter) and weight.dim() == 1 and weight.device.type not in ("meta", "mps")
    return numbers[0] if vector else None


@torch.no_grad()
def _is_norm(module: nn.Module, offset: float, eps: float, dtype: torch.dtype) -> bool:
    (weight,) = module._parameters.values()
    assert weight is not None
    scales = torch.tensor([1.0, 30.0, 0.01, eps**0.5, 0.1 * eps**0.5])[:, None]  # the last ones show eps
    draws = torch.randn(len(scales), len(weight), generator=torch.Generator().manual_seed(0))
    x = (draws * scales).to(weight.device, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that its own norm is slow where dtypes differ
        try:
            y = type(module).forward(module, x)
        except Exception:  # it takes something else, and may say so in any way
            return False
    if not isinstance(y, Tensor) or y.dtype != x.dtype or y.shape != x.shape:
        return False
    wide = x.double()
    meant = (weight.double() + offset) * wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    return bool((row_distances(y, meant, math.inf) <= KERNELS + rounding(dtype)).all())
