"""RMS norms of a model that trains on a CPU, computed by one compiled operation wherever a module is just that.

Which modules those are is found by what they compute, not by a name: their output and gradients for numbers of several
scales are those of the formula, or the module is left alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.ops import active_backend
from ftengine.ops.elementwise import rms_norm

DTYPES = (torch.float32, torch.bfloat16)
"""What there are kernels for."""

OFFSETS = (0.0, 1.0)
"""What is added to the weight; Gemma's is stored as a difference from 1."""


def fuse_norms(model: nn.Module) -> list[nn.Module]:
    """Let each RMS norm of a model compute in one operation, where kernels are compiled; return those that do.

    The modules keep their class, parameters and hooks. `restore_norms` undoes it.
    """
    if active_backend("cpu")[0] != "compiled":
        return []
    fused = []
    for module in model.modules():
        eps = _eps(module)
        if eps is None:
            continue
        for offset in OFFSETS:
            dtypes = {dtype for dtype in DTYPES if _is_norm(module, offset, eps, dtype)}
            if dtypes:
                vars(module)["forward"] = _forward(type(module).forward, offset, eps, dtypes).__get__(module)
                fused.append(module)
                break
    return fused


def restore_norms(fused: list[nn.Module]) -> None:
    """Let norms compute as they did."""
    while fused:
        vars(fused.pop()).pop("forward", None)


def _forward(original: Callable[..., Any], offset: float, eps: float, dtypes: set[torch.dtype]) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = next(iter(self._parameters.values()))
        if args or kwargs or weight is None or x.device.type != "cpu" or x.dtype not in dtypes:
            return original(self, x, *args, **kwargs)
        return rms_norm(x, weight, offset, eps)

    return forward


def _eps(module: nn.Module) -> float | None:
    """Return the only number of a module that has a vector beside it and nothing else; None for every other one.

    A class that a strategy made of another while it prepared the model is none: it may do more than compute.
    """
    kind = type(module)
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return None
    parameters, numbers = list(module._parameters.values()), [x for x in vars(module).values() if isinstance(x, float)]
    if len(parameters) != 1 or len(numbers) != 1 or module._modules or module._buffers or "forward" in vars(module):
        return None
    vector = type(weight := parameters[0]) is nn.Parameter and weight.dim() == 1 and weight.device.type == "cpu"
    return numbers[0] if vector else None


def _is_norm(module: nn.Module, offset: float, eps: float, dtype: torch.dtype) -> bool:
    """Say whether a module computes y = (w + offset) ∘ x / sqrt(mean(x²) + eps) and its gradients, up to rounding."""
    (weight,) = module._parameters.values()
    assert weight is not None
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 30.0, 0.01, eps**0.5, 0.1 * eps**0.5])[:, None]  # the last ones show eps
    x = (torch.randn(len(scales), len(weight), generator=generator) * scales).to(dtype).requires_grad_()
    dy = torch.randn(x.shape, generator=generator).to(dtype)
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
        found = [y, *torch.autograd.grad(y, [own for own, _ in inputs], dy, allow_unused=True)]
        expected = [meant, *torch.autograd.grad(meant, [own for _, own in inputs], dy.double())]
    return all(own is not None and _close(own, truth) for own, truth in zip(found, expected, strict=True))


def _close(own: Tensor, truth: Tensor) -> bool:
    """Say whether two results differ by rounding alone, row by row.

    The original may add up a row in any order, and round to its dtype a few times on the way. That averages out over a
    row, so a common factor, such as that of another mean, shows in bfloat16 as well.
    """
    wide, exact, single = own.double(), 16 * torch.finfo(torch.float32).eps, 4 * torch.finfo(own.dtype).eps
    factors = (wide * truth).sum(-1) / truth.square().sum(-1)
    alike = (factors - 1).abs() <= exact + single / own.shape[-1] ** 0.5
    near = (wide - truth).abs() <= (exact + single) * truth.abs().amax(-1, keepdim=True)
    return bool(alike.all() and near.all())
