"""Whole layers composed of operators on their parts, for devices without a kernel for a whole layer.

A layer is a frozen weight with its low-rank update. Layers with the same input x share its dropout mask and one S,
which concatenates their columns.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ftengine.ops.dropout import draw_seed, dropout_level


def lowrank_group_forward(
    parts: Any,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    p: float,
    seed: Tensor | None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return y of each layer, S (M, Σr) and the seed that was used: a () int64 tensor, (0,) without dropout.

    y = x Wᵀ + bias + scale · (dropout(x) Aᵀ) Bᵀ

    Args:
        parts: object with the operators as attributes: lowrank_shrink and so on.
        x: (..., K).
        weights: (N, K) each; and biases, (N,) each or None; cast to x's dtype.
        a: (r, K) each; b: (N, r) each.
        scales: one for each layer.
        p: a multiple of 1/65536.
        seed: () int64; drawn if None and p > 0.
    """
    rows, seed = as_matrix(x), own_seed(x, p, seed)
    s = parts.lowrank_shrink(rows, stacked(a), p, seed if p else None)
    ys = []
    columns = s.split([len(factor) for factor in a], dim=1)
    for weight, bias, factor, scale, own in zip(weights, biases, b, scales, columns, strict=True):
        y = linear(rows, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        parts.lowrank_expand_(y, own.contiguous(), factor, scale)
        ys.append(y.view(*x.shape[:-1], y.shape[-1]))
    return ys, s, seed


def lowrank_group_backward(
    parts: Any,
    dys: Sequence[Tensor],
    x: Tensor,
    s: Tensor,
    seed: Tensor,
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    p: float,
    input_gradient: bool,
) -> list[Tensor]:
    """Return da and db of each layer and, with input_gradient, the dx of all layers together."""
    rows, ranks = as_matrix(x), [len(factor) for factor in a]
    dx, ds, db = None, [], []
    for dy, weight, factor, scale, own in zip(dys, weights, b, scales, s.split(ranks, dim=1), strict=True):
        dy = as_matrix(dy)
        if input_gradient:
            weight = weight.to(x.dtype)
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        gradients = parts.lowrank_backward_output(dy, own.contiguous(), factor, scale)
        ds.append(gradients[0])
        db.append(gradients[1])
    together = ds[0] if len(ds) == 1 else torch.cat(ds, dim=1)
    da = parts.lowrank_backward_input_(dx, rows, together, stacked(a), p, seed if p else None)
    split = [da] if len(a) == 1 else [part.to(f.dtype).clone() for part, f in zip(da.split(ranks), a, strict=True)]
    return [*split, *db, *([] if dx is None else [dx.view(x.shape)])]


def lowrank_forward(
    parts: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, S and the seed of a single layer, as lowrank_group_forward."""
    (y,), s, seed = lowrank_group_forward(parts, x, [weight], [bias], [a], [b], [scale], p, seed)
    return y, s, seed


def lowrank_backward(
    parts: Any,
    dy: Tensor,
    x: Tensor,
    s: Tensor,
    seed: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    p: float,
    input_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return da, db and dx of a single layer, as lowrank_group_backward; dx is (0,) unless input_gradient."""
    da, db, *dx = lowrank_group_backward(parts, [dy], x, s, seed, [weight], [a], [b], [scale], p, input_gradient)
    return da, db, dx[0] if dx else x.new_empty(0)


def lowrank_expand(parts: Any, y: Tensor, s: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return y + scale · S Bᵀ, fresh.  y (M, N), s (M, r), b (N, r)."""
    out = y.clone()
    parts.lowrank_expand_(out, s, b, scale)
    return out


def lowrank_backward_input(
    parts: Any, x: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return dx = mask ∘ (dS A) / (1 - p) alone, and da.  x (M, K), ds (M, r), a (r, K)."""
    dx = torch.zeros_like(x)
    da = parts.lowrank_backward_input_(dx, x, ds, a, p, seed)
    return dx, da


def as_matrix(x: Tensor) -> Tensor:
    """Return x (..., K) as contiguous (M, K); x itself or a view wherever x is contiguous."""
    if x.dim() == 2:
        return x.contiguous()
    return x.contiguous().view(prod(x.shape[:-1]), x.shape[-1])


def stacked(factors: Sequence[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else torch.cat(tuple(factors))


def own_seed(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    if dropout_level(p) == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    return draw_seed(x.device) if seed is None else seed.clone()
