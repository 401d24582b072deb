"""The low-rank layers with their gradients.

For the backward pass they save x, S, the seed and references to parameters, but no mask, no dropout(x) and no copy of
the weight in another dtype. Arguments are never overwritten.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftengine.ops.composite import as_matrix
from ftengine.ops.eligibility import why_ineligible
from ftengine.ops.precision import without_autocast
from ftengine.ops.schemas import OPERATORS, REFERENCE

Gradients = tuple[Tensor | None, ...]


class _NoContext:
    """What a forward is given in place of autograd's context: nothing is kept."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep nothing."""


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Call a function's `apply`; without gradients only its forward, which saves about 15 µs."""
    return function.apply(*args) if torch.is_grad_enabled() else function.forward(_NoContext(), *args)


def operators(rank: int, columns: Iterable[int], *large: Tensor) -> SimpleNamespace:
    """Return the operators to call: the dispatcher's, or the reference's if a large operand is not eligible."""
    for x in large:
        if why_ineligible(x.device.type, x.dtype, rank, x.layout, columns) is not None:
            return REFERENCE
    return OPERATORS


def outside_autocast(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Let a backward pass compute in the dtypes of its forward pass, and refuse double differentiation."""
    once = once_differentiable(backward)

    @wraps(backward)
    def call(ctx: Any, *dys: Tensor) -> Gradients:
        with without_autocast(dys[0].device.type):
            # With create_graph=True; else the check would only cost time.
            return once(ctx, *dys) if torch.is_grad_enabled() else backward(ctx, *dys)

    return call


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
        ctx.ops = operators(a.shape[0], weight.shape, x)
        y, s, seed = ctx.ops.lowrank_forward(x, weight, bias, a, b, scale, p, seed)
        ctx.save_for_backward(x, s, seed, weight, a, b)
        ctx.scale, ctx.p = scale, p
        return y

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        wanted = ctx.needs_input_grad[0]
        da, db, dx = ctx.ops.lowrank_backward(dy, *ctx.saved_tensors, ctx.scale, ctx.p, wanted)
        return dx if wanted else None, None, None, da, db, None, None, None


class LowRankGroup(torch.autograd.Function):
    """The same for layers that read one x; operands are all weights, all biases, all A and all B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: list[float], p: float, seed: Tensor | None, *operands: Any
    ) -> tuple[Tensor, ...]:
        n = len(scales)
        weights, biases, a, b = (operands[i * n : i * n + n] for i in range(4))
        ranks = sum(factor.shape[0] for factor in a)
        sizes = (x.shape[-1], *(factor.shape[0] for factor in b))
        ctx.ops = operators(ranks, sizes, x)
        ys, s, seed = ctx.ops.lowrank_group_forward(x, weights, biases, a, b, scales, p, seed)
        ctx.save_for_backward(x, s, seed, *weights, *a, *b)
        ctx.scales, ctx.p = scales, p
        return tuple(ys)

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, *dys: Tensor) -> Gradients:
        n, (x, s, seed, *operands), wanted = len(dys), ctx.saved_tensors, ctx.needs_input_grad[0]
        weights, a, b = (operands[i * n : i * n + n] for i in range(3))
        gradients = ctx.ops.lowrank_group_backward(dys, x, s, seed, weights, a, b, ctx.scales, ctx.p, wanted)
        return (gradients[-1] if wanted else None, None, None, None, *(None,) * (2 * n), *gradients[: 2 * n])


class LowRankAdd(torch.autograd.Function):
    """out = y + scale · dropout(x) Aᵀ Bᵀ, for y = f(x) with any frozen f."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, p: float, seed: Tensor | None
    ) -> Tensor:
        ctx.ops = operators(a.shape[0], (x.shape[-1], y.shape[-1]), x, y)
        s = ctx.ops.lowrank_shrink(as_matrix(x), a, p, seed)
        out = ctx.ops.lowrank_expand(as_matrix(y), s, b, scale)
        ctx.save_for_backward(x, s, seed, a, b)
        ctx.scale, ctx.p = scale, p
        return out.view(y.shape)

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, s, seed, a, b = ctx.saved_tensors
        rows = as_matrix(x)
        ds, db = ctx.ops.lowrank_backward_output(as_matrix(dy), s, b, ctx.scale)
        if not ctx.needs_input_grad[1]:
            return dy, None, ctx.ops.lowrank_backward_input_(None, rows, ds, a, ctx.p, seed), db, None, None, None
        dx, da = ctx.ops.lowrank_backward_input(rows, ds, a, ctx.p, seed)
        return dy, dx.view(x.shape), da, db, None, None, None
