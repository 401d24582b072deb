"""The low-rank layers with their gradients.

They keep x, S and the seed for the backward, and otherwise only references to parameters: no mask, no dropout(x), no
copy of the weight in another dtype. They overwrite nothing that they were given.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftengine.ops import composite, reference
from ftengine.ops.composite import as_matrix
from ftengine.ops.eligibility import why_ineligible
from ftengine.ops.precision import without_autocast
from ftengine.ops.schemas import (
    BACKWARD,
    BACKWARD_INPUT,
    EXPAND,
    FORWARD,
    GROUP_BACKWARD,
    GROUP_FORWARD,
    PARTS,
)

Gradients = tuple[Tensor | None, ...]

REFERENCE = SimpleNamespace(
    forward=partial(composite.lowrank_forward, reference),
    backward=partial(composite.lowrank_backward, reference),
    group_forward=partial(composite.lowrank_group_forward, reference),
    group_backward=partial(composite.lowrank_group_backward, reference),
    expand=partial(composite.lowrank_expand, reference),
    backward_input=partial(composite.lowrank_backward_input, reference),
)


def operators(rank: int, *large: Tensor) -> Any:
    """Return where the operators live: the dispatcher, or the reference where a large operand is not eligible."""
    refused = any(why_ineligible(x.device.type, x.dtype, rank, x.layout, x.shape[-1:]) for x in large)
    return reference if refused else PARTS


def as_decided(gradients: Callable[[Any, Any], Gradients], ctx: Any, dy: Any, device_type: str) -> Gradients:
    """Return a backward's gradients, outside of autocast, and refuse to differentiate them once more."""
    if torch.is_grad_enabled():  # create_graph=True; else the check would only cost time
        gradients = once_differentiable(gradients)
    with without_autocast(device_type):
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
        ctx.refused = why_ineligible(x.device.type, x.dtype, a.shape[0], x.layout, weight.shape) is not None
        call = REFERENCE.forward if ctx.refused else FORWARD
        y, s, seed = call(x, weight, bias, a, b, scale, p, seed)
        ctx.save_for_backward(x, s, seed, weight, a, b)
        ctx.scale, ctx.p = scale, p
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        return as_decided(_linear_gradients, ctx, dy, dy.device.type)


def _linear_gradients(ctx: Any, dy: Tensor) -> Gradients:
    call, wanted = REFERENCE.backward if ctx.refused else BACKWARD, ctx.needs_input_grad[0]
    da, db, dx = call(dy, *ctx.saved_tensors, ctx.scale, ctx.p, wanted)
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
        ctx.refused = why_ineligible(x.device.type, x.dtype, ranks, x.layout, sizes) is not None
        call = REFERENCE.group_forward if ctx.refused else GROUP_FORWARD
        ys, s, seed = call(x, weights, biases, a, b, scales, p, seed)
        ctx.save_for_backward(x, s, seed, *weights, *a, *b)
        ctx.scales, ctx.p = scales, p
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> Gradients:
        return as_decided(_group_gradients, ctx, dys, dys[0].device.type)


def _group_gradients(ctx: Any, dys: tuple[Tensor, ...]) -> Gradients:
    n, (x, s, seed, *operands) = len(dys), ctx.saved_tensors
    weights, a, b = (operands[i * n : i * n + n] for i in range(3))
    call, wanted = REFERENCE.group_backward if ctx.refused else GROUP_BACKWARD, ctx.needs_input_grad[0]
    gradients = call(dys, x, s, seed, weights, a, b, ctx.scales, ctx.p, wanted)
    return (gradients[-1] if wanted else None, None, None, None, *(None,) * (2 * n), *gradients[: 2 * n])


class LowRankAdd(torch.autograd.Function):
    """out = y + scale · dropout(x) Aᵀ Bᵀ, for y = f(x) with any frozen f."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, p: float, seed: Tensor | None
    ) -> Tensor:
        ctx.ops = operators(a.shape[0], x, y)
        s = ctx.ops.lowrank_shrink(as_matrix(x), a, p, seed)
        expand = REFERENCE.expand if ctx.ops is reference else EXPAND
        out = expand(as_matrix(y), s, b, scale)
        ctx.save_for_backward(x, s, seed, a, b)
        ctx.scale, ctx.p = scale, p
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        return as_decided(_update_gradients, ctx, dy, dy.device.type)


def _update_gradients(ctx: Any, dy: Tensor) -> Gradients:
    x, s, seed, a, b = ctx.saved_tensors
    rows = as_matrix(x)
    ds, db = ctx.ops.lowrank_backward_output(as_matrix(dy), s, b, ctx.scale)
    if not ctx.needs_input_grad[1]:
        return dy, None, ctx.ops.lowrank_backward_input_(None, rows, ds, a, ctx.p, seed), db, None, None, None
    backward_input = REFERENCE.backward_input if ctx.ops is reference else BACKWARD_INPUT
    dx, da = backward_input(rows, ds, a, ctx.p, seed)
    return dy, dx.view(x.shape), da, db, None, None, None
