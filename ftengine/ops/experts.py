"""Experts of a mixture with low-rank updates: each token passes the few experts that a router chose for it.

For a token x with experts e and their shares w_e (Shazeer et al. 2017, arXiv:1701.06538), and f either of the two maps
of an expert with its update (Hu et al. 2021, arXiv:2106.09685):

    y = Σ_e w_e · down_e(gate(up_e(x)))        f_e(z) = z W_eᵀ + bias_e + scale · (dropout(z) A_eᵀ) B_eᵀ

Rows are grouped by expert, and one operator computes the product and the update of a group. As down_e is linear, w_e
multiplies its input, which is the narrower side. The backward pass keeps x, the output of up, and the (rows, r)
products of the updates; everything else is computed again. Sums over experts accumulate in at least float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ftengine.ops.autograd import Gradients, apply, operators, outside_autocast
from ftengine.ops.dropout import draw_seed, quantise_dropout
from ftengine.ops.elementwise import dropout
from ftengine.ops.precision import compute_dtype, without_autocast

Gate = Callable[[Tensor], Tensor]
"""From the output of up (M, N) to the input of down (M, I), row by row."""


class ExpertMap(NamedTuple):
    """A frozen linear map of each expert, perhaps with a low-rank update.

    Args:
        weight: (E, N, K); may be a transposed view.
        bias: (E, N) or None.
        a: (E, r, K), or (r, K) shared by all experts; None without an update.
        b: (E, N, r).
        scale: alpha / r, dimensionless.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scale: float = 1.0


def lowrank_experts(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    up: ExpertMap,
    down: ExpertMap,
    gate: Gate,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Apply experts with low-rank updates to the tokens that chose them.

    Args:
        x: (T, K) tokens; under autocast cast, as torch.nn.functional.linear casts it.
        chosen: (T, k) integers, different experts for a token.
        shares: (T, k), what each expert's output is multiplied by; in any float dtype.
        up, down: the maps; weights and biases receive no gradient. An expert without tokens has zero gradients.
        gate: differentiable; called again in the backward pass, so it draws no random numbers.
        p: dropout probability of the updates' inputs.
        seed: () int64 tensor; drawn from torch's generator when None and p > 0.

    Returns:
        (T, N of down) in x's dtype.

    Raises:
        ValueError: shapes disagree, or a weight or bias requires a gradient.
    """
    _check("up", up, x.shape[-1])
    _check("down", down, None)
    if chosen.shape != shares.shape or chosen.shape[:1] != x.shape[:1]:
        shapes = [(*tensor.shape,) for tensor in (x, chosen, shares)]
        raise ValueError("x is {}, chosen is {} and shares is {}: each has a row for each token".format(*shapes))
    dtype, p = compute_dtype(x.device.type, x.dtype), quantise_dropout(p)
    if p and seed is None:
        seed = draw_seed(x.device)
    maps = (*up[:4], *down[:4])
    with without_autocast(x.device.type):
        y = apply(_Experts, x.to(dtype), chosen, shares, (up.scale, down.scale), gate, p, seed if p else None, *maps)
    return y.to(x.dtype)


class _Group(NamedTuple):
    """The pairs of token and expert that are of one expert: their rows once all are sorted, and their tokens."""

    expert: int
    rows: slice
    tokens: Tensor


class _Experts(torch.autograd.Function):
    """See the module's docstring; the last operands are weight, bias, A and B of up, then those of down."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chosen: Tensor,
        shares: Tensor,
        scales: tuple[float, float],
        gate: Gate,
        p: float,
        seed: Tensor | None,
        *operands: Any,
    ) -> Tensor:
        up, down = _maps(x, operands, scales, p)
        order, groups = _grouped(chosen, len(up.weight))
        kept, inner_kept = _masks(x, order, down.weight, p, seed)
        hidden = x.new_empty(len(order), up.weight.shape[1])
        for group in groups:
            hidden[group.rows] = up.forward(group.expert, x[group.tokens], _of(kept, group.tokens), up.bias)
        weights = shares.reshape(-1)[order, None]
        inner = _times(gate(hidden), weights)
        y = x.new_zeros(len(x), down.weight.shape[1], dtype=_wide(x.dtype))
        for group in groups:
            rows = down.forward(group.expert, inner[group.rows], _of(inner_kept, order[group.rows])).to(y.dtype)
            if down.bias is not None:
                rows = rows.addcmul(weights[group.rows].to(y.dtype), down.bias[group.expert].to(y.dtype))
            y.index_add_(0, group.tokens, rows)
        ctx.save_for_backward(x, chosen, shares, seed, hidden, *operands, *up.products, *down.products)
        ctx.scales, ctx.gate, ctx.p = scales, gate, p
        return y.to(x.dtype)

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, chosen, shares, seed, hidden, *rest = ctx.saved_tensors
        up, down = _maps(x, rest[:8], ctx.scales, ctx.p, rest[8:])
        order, groups = _grouped(chosen, len(up.weight))
        kept, inner_kept = _masks(x, order, down.weight, ctx.p, seed)
        weights, dy = shares.reshape(-1)[order, None], dy.to(x.dtype)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            gated = ctx.gate(hidden)
        inner = _times(gated.detach(), weights)
        d_inner, d_weights = torch.empty_like(inner), x.new_zeros(len(order), dtype=_wide(x.dtype))
        for group in groups:
            rows, mask = dy[group.tokens], _of(inner_kept, order[group.rows])
            d_inner[group.rows] = down.backward(group.expert, rows, inner[group.rows], mask)
            if down.bias is not None:
                d_weights[group.rows] = rows.to(d_weights.dtype) @ down.bias[group.expert].to(d_weights.dtype)
        d_weights += (d_inner * gated.detach()).sum(1, dtype=d_weights.dtype)
        (d_hidden,) = torch.autograd.grad(gated, hidden, _times(d_inner, weights))
        del inner, d_inner, gated
        wanted = ctx.needs_input_grad[0]
        dx = torch.zeros_like(x, dtype=_wide(x.dtype))
        for group in groups:
            rows, mask = x[group.tokens], _of(kept, group.tokens)
            part = up.backward(group.expert, d_hidden[group.rows], rows, mask, wanted)
            if wanted:
                dx.index_add_(0, group.tokens, part.to(dx.dtype))
        d_shares = torch.empty_like(d_weights).scatter_(0, order, d_weights).view(shares.shape).to(shares.dtype)
        factors = (None, None, *up.gradients, None, None, *down.gradients)
        return dx.to(x.dtype) if wanted else None, None, d_shares, None, None, None, None, *factors


class _Map:
    """One of the two maps while it computes, with what is kept of its forward pass: S of each expert that has rows."""

    def __init__(self, x: Tensor, operands: Sequence[Any], scale: float, products: Sequence[Tensor]) -> None:
        self.weight, self.bias, self.a, self.b = operands
        self.scale, self.products = scale, list(products)
        if self.a is not None:
            self._parts = operators(self.a.shape[-2], self.weight.shape[1:], x)
            self._no_seed = torch.empty(0, dtype=torch.int64, device=x.device)

    def forward(self, expert: int, rows: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
        weight, own = self.weight[expert], None if bias is None else bias[expert]
        if self.a is None or mask is not None:
            y = linear(rows, weight.to(rows.dtype), None if own is None else own.to(rows.dtype))
        if self.a is None:
            return y
        a, b = self._factors(expert)
        if mask is None:
            y, s, _ = self._parts.lowrank_forward(rows, weight, own, a, b, self.scale, 0.0, None)
        else:
            s = self._parts.lowrank_shrink(rows * mask, a, 0.0, None)
            self._parts.lowrank_expand_(y, s, b, self.scale)
        self.products.append(s)
        return y

    def backward(self, expert: int, dy: Tensor, rows: Tensor, mask: Tensor | None, wanted: bool = True) -> Tensor:
        """Return the gradient of an expert's rows, if it is wanted, and add those of A and B; experts in order."""
        weight = self.weight[expert]
        if self.a is None:
            return dy @ weight.to(dy.dtype) if wanted else dy
        s, (a, b) = self.products.pop(0), self._factors(expert)
        if mask is None:
            da, db, dx = self._parts.lowrank_backward(dy, rows, s, self._no_seed, weight, a, b, self.scale, 0.0, wanted)
        else:
            ds, db = self._parts.lowrank_backward_output(dy, s, b, self.scale)
            dx, da = self._parts.lowrank_backward_input(rows * mask, ds, a, 0.0, None)
            dx = torch.addcmul(dy @ weight.to(dy.dtype), dx, mask) if wanted else dx
        for gradient, part in zip(self.gradients, (da, db), strict=True):
            assert gradient is not None
            if gradient.dim() == 2:
                gradient += part
            else:
                gradient[expert] = part
        return dx

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Of A and B; zeros for experts without rows."""
        return (None, None) if self.a is None else (torch.zeros_like(self.a), torch.zeros_like(self.b))

    def _factors(self, expert: int) -> tuple[Tensor, Tensor]:
        return self.a if self.a.dim() == 2 else self.a[expert], self.b[expert]


def _maps(
    x: Tensor, operands: Sequence[Any], scales: tuple[float, float], p: float, products: Sequence[Tensor] = ()
) -> tuple[_Map, _Map]:
    """Return both maps, with their parts of what the forward pass kept; scales take in 1 / (1 - p)."""
    both = operands[2] is not None and operands[6] is not None
    middle = len(products) // 2 if both else len(products) if operands[2] is not None else 0
    up = _Map(x, operands[:4], scales[0] / (1 - p), products[:middle])
    return up, _Map(x, operands[4:], scales[1] / (1 - p), products[middle:])


def _masks(
    x: Tensor, order: Tensor, down: Tensor, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return 1 where dropout keeps an element and 0 elsewhere: of x, and of the inputs of down, unsorted.

    An element's fate depends on its token alone, not on where others went, such as those of padding.
    """
    if seed is None:
        return None, None
    sizes = x.shape, (len(order), down.shape[2])
    ones = (x.new_ones(size) for size in sizes)
    kept, inner = (dropout(one, p, seed + i) != 0 for i, one in enumerate(ones))
    return kept.to(x.dtype), inner.to(x.dtype)


def _of(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask[rows]


def _grouped(chosen: Tensor, experts: int) -> tuple[Tensor, list[_Group]]:
    """Return the order of the (T·k) pairs that sorts them by expert, and the experts that have any."""
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    tokens = order // max(1, chosen.shape[-1])
    groups, start = [], 0
    for expert, count in enumerate(torch.bincount(flat, minlength=experts).tolist()):
        rows = slice(start, start + count)
        if count:
            groups.append(_Group(expert, rows, tokens[rows]))
        start += count
    return order, groups


def _times(rows: Tensor, weights: Tensor) -> Tensor:
    """Return rows times a weight each, rounded once.  rows (M, N), weights (M, 1), perhaps in a wider dtype."""
    return (rows * weights).to(rows.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(name: str, part: ExpertMap, inputs: int | None) -> None:
    weight, bias, a, b, _ = part
    if any(tensor is not None and tensor.requires_grad for tensor in (weight, bias)) and torch.is_grad_enabled():
        raise ValueError(f"the weight or bias of {name} requires a gradient, but here both are frozen")
    experts, outputs, columns = weight.shape
    fits = inputs in (None, columns) and (bias is None or bias.shape == (experts, outputs))
    if a is not None and b is not None:
        fits &= a.shape in ((experts, b.shape[-1], columns), (b.shape[-1], columns))
        fits &= b.shape[:-1] == (experts, outputs)
    if not fits or (a is None) != (b is None):
        shapes = {key: None if t is None else (*t.shape,) for key, t in part._asdict().items() if key != "scale"}
        raise ValueError(f"{name} has the shapes {shapes}, for inputs of size {columns if inputs is None else inputs}")
