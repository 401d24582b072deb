"""RMS norms of any model, known by what a module computes and not by its name.

y = (w + offset) ∘ x / sqrt(mean(x²) + eps)           (Zhang and Sennrich 2019, arXiv:1910.07467)
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ftengine.equivalence import KERNELS, rounding, row_distances

OFFSETS = (0.0, 1.0)
"""What is added to the weight; Gemma's is stored as a difference from 1."""


@dataclass(frozen=True)
class RMSNorm:
    """What an RMS norm adds to its weight (L,) and to the mean of squares, and the dtypes for which it was found."""

    offset: float
    eps: float
    dtypes: frozenset[torch.dtype]


_known: WeakKeyDictionary[nn.Module, tuple[Any, RMSNorm | None]] = WeakKeyDictionary()
"""Of modules that were asked: what they were then, and which norm that is."""


def rms_norm_of(module: nn.Module, dtypes: Iterable[torch.dtype]) -> RMSNorm | None:
    """Say which RMS norm a module is, None where it computes something else.

    It is one where its output and its gradients, for rows of several scales, are those of the formula up to rounding,
    in float32 and in some of `dtypes`: rounded to bfloat16, something else may look like the formula. Its class's
    `forward` is asked, whatever the module has in its place; and the class must be one that a Python module defines,
    not one that a strategy made of another while it prepared the model, which may do more than it is asked here. On a
    device without float64 or without numbers (meta) none is found. A module is asked again where its class's `forward`,
    its number, or the vector but for its values is another than before.
    """
    eps, requested = _eps(module), tuple(dtypes)
    if eps is None:
        return None
    (weight,) = module._parameters.values()
    assert weight is not None
    state = type(module).forward, eps, requested, weight.shape, weight.dtype, weight.device, weight.requires_grad
    if _known.get(module, (None, None))[0] != state:
        _known[module] = state, _ask(module, eps, requested)
    return _known[module][1]


def _ask(module: nn.Module, eps: float, requested: Iterable[torch.dtype]) -> RMSNorm | None:
    wide = _widened(module)
    for offset in OFFSETS:
        if not _is_norm(wide, offset, eps, torch.float32):
            continue
        matching = frozenset(dtype for dtype in requested if _is_norm(module, offset, eps, dtype))
        if matching:
            return RMSNorm(offset, eps, matching)
    return None


def _eps(module: nn.Module) -> float | None:
    """Return the only number of a module that has a vector beside it and nothing else; None for every other one."""
    kind = type(module)
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return None
    parameters, numbers = list(module._parameters.values()), [x for x in vars(module).values() if isinstance(x, float)]
    if len(parameters) != 1 or len(numbers) != 1 or module._modules or module._buffers:
        return None
    weight = parameters[0]
    if type(weight) is not nn.Parameter or weight.dim() != 1 or weight.device.type in ("meta", "mps"):
        return None
    return numbers[0]


def _widened(module: nn.Module) -> nn.Module:
    """Return a copy whose vector is float32."""
    wide, ((name, weight),) = copy.copy(module), module._parameters.items()
    assert weight is not None
    vars(wide)["_parameters"] = {name: nn.Parameter(weight.detach().float(), weight.requires_grad)}
    return wide


def _is_norm(module: nn.Module, offset: float, eps: float, dtype: torch.dtype) -> bool:
    (weight,) = module._parameters.values()
    assert weight is not None
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 30.0, 0.01, eps**0.5, 0.1 * eps**0.5])[:, None]  # the last ones show eps
    x = (torch.randn(len(scales), len(weight), generator=generator) * scales).to(weight.device, dtype).requires_grad_()
    dy = torch.randn(x.shape, generator=generator).to(x)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that its own norm is slow where dtypes differ
        try:
            y = type(module).forward(module, x)
        except Exception:  # it takes something else, and may say so in any way
            return False
        if not isinstance(y, Tensor) or y.dtype != x.dtype or y.shape != x.shape:
            return False
        wide, w = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
        meant = (w + offset) * wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
        inputs = [(x, wide), *([(weight, w)] if weight.requires_grad else [])]
        if not y.requires_grad:
            return False
        actual = [y, *torch.autograd.grad(y, [own for own, _ in inputs], dy, allow_unused=True)]
        expected = [meant, *torch.autograd.grad(meant, [own for _, own in inputs], dy.double())]
    return all(own is not None and _close(own, truth) for own, truth in zip(actual, expected, strict=True))


def _close(own: Tensor, truth: Tensor) -> bool:
    """Say whether two results differ by rounding alone, row by row.

    The original may add up a row in any order, and round to its dtype a few times on the way. That averages out over a
    row, so a common factor, such as that of another mean, shows in bfloat16 as well.
    """
    factors, single = (own.double() * truth).sum(-1) / truth.square().sum(-1), rounding(own.dtype)
    alike = (factors - 1).abs() <= KERNELS + single / own.shape[-1] ** 0.5
    return bool(alike.all() and (row_distances(own, truth, math.inf) <= KERNELS + single).all())
