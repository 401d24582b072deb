"""The two low-rank layers with their gradients.

Both keep x, s and the seed for the backward, and otherwise only references to parameters: no mask, no dropout(x), no
copy of the weight in another dtype. Neither overwrites anything it was given.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ftengine.ops import reference
from ftengine.ops.eligibility import why_ineligible
from ftengine.ops.precision import without_autocast

Gradients = tuple[Tensor | None, ...]


def operators(rank: int, *large: Tensor) -> ModuleType:
    """Return where the operators live: the dispatcher, or the reference where a large operand is not eligible."""
    refused = any(why_ineligible(x.device.type, x.dtype, rank, x.layout) for x in large)
    return reference if refused else torch.ops.ftengine


def as_matrix(x: Tensor) -> Tensor:
    """Return x (..., K) as contiguous (M, K); x itself or a view wherever x is contiguous."""
    return (x if x.dim() == 2 else x.reshape(-1, x.shape[-1])).contiguous()


def as_decided(gradients: Callable[[Any, Tensor], Gradients], ctx: Any, dy: Tensor) -> Gradients:
    """Return a backward's gradients, outside of autocast, and refuse to differentiate them once more."""
    if torch.is_grad_enabled():  # create_graph=True; else the check would only cost time
        gradients = once_differentiable(gradients)
    with without_autocast(dy.device.type):
        return gradients(ctx, dy)


class LowRankLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ, W and bias frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        p: float,
        seed: Tensor | None,
    ) -> Tensor:
        ctx.ops, rows = operators(a.shape[0], x), as_matrix(x)
        s = ctx.ops.lowrank_shrink(rows, a, p, seed)
        y = linear(rows, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        ctx.ops.lowrank_expand_(y, s, b, scale)
        ctx.save_for_backward(x, s, seed, weight, a, b)
        ctx.scale, ctx.p = scale, p
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        return as_decided(_linear_gradients, ctx, dy)


def _linear_gradients(ctx: Any, dy: Tensor) -> Gradients:
    x, s, seed, weight, a, b = ctx.saved_tensors
    dy = as_matrix(dy)
    dx = dy @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
    ds, db = ctx.ops.lowrank_backward_output(dy, s, b, ctx.scale)
    da = ctx.ops.lowrank_backward_input_(dx, as_matrix(x), ds, a, ctx.p, seed)
    return None if dx is None else dx.view(x.shape), None, None, da, db, None, None, None


class LowRankAdd(torch.autograd.Function):
    """out = y + scale · dropout(x) Aᵀ Bᵀ, for y = f(x) with any frozen f."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, p: float, seed: Tensor | None
    ) -> Tensor:
        ctx.ops = operators(a.shape[0], x, y)
        s = ctx.ops.lowrank_shrink(as_matrix(x), a, p, seed)
        out = as_matrix(y).clone()
        ctx.ops.lowrank_expand_(out, s, b, scale)
        ctx.save_for_backward(x, s, seed, a, b)
        ctx.scale, ctx.p = scale, p
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        return as_decided(_update_gradients, ctx, dy)


def _update_gradients(ctx: Any, dy: Tensor) -> Gradients:
    x, s, seed, a, b = ctx.saved_tensors
    rows = as_matrix(x)
    dx = torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
    ds, db = ctx.ops.lowrank_backward_output(as_matrix(dy), s, b, ctx.scale)
    da = ctx.ops.lowrank_backward_input_(dx, rows, ds, a, ctx.p, seed)
    return dy, None if dx is None else dx.view(x.shape), da, db, None, None, None
