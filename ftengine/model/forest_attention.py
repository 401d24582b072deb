"""Attention over a forest's pieces: of each some queries against some keys.

On a CPU by torch's own kernels, which give the log-sum-exp of a query's scores, so that what it reads in several pieces
is put together, and gradients are computed from what is gathered anew: no copy of shared keys is kept until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Piece:
    """What is new of some rows.

    Args:
        queries: (m, L) tokens of the forest; of shorter ones the last is repeated.
        keys: (m, P) tokens of the forest, those before them included.
        mask: (m, 1, L, P), which keys a query sees; None: as many as it has in front of it, and itself.
        repeated: (m, 1, L), which queries are there only to fill; None: none.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None
    repeated: Tensor | None

    @cached_property
    def added(self) -> Tensor | None:
        """What is added to scores: minus infinity where a query does not see a key."""
        return None if self.mask is None else torch.zeros(self.mask.shape).masked_fill_(~self.mask, -torch.inf)


@dataclass(frozen=True)
class Pieces:
    """All of a forest.

    Args:
        own: pieces in which each query is once.
        places: where each query's result stands among theirs.
        beginnings: queries, and keys that all of them see besides.
    """

    own: Sequence[Piece]
    places: Tensor
    beginnings: Sequence[tuple[slice, slice]]


class Attention(torch.autograd.Function):
    """Attention of (N, heads, D) queries over the keys and values of a forest, on a CPU."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float | None) -> Tensor:
        """Return (N, heads, D)."""
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        results, weights = list[Tensor](), list[Tensor]()
        for piece in pieces.own:
            rows = (_wide(rows_of(x, y)) for x, y in ((q, piece.queries), (k, piece.keys), (v, piece.keys)))
            result, weight = attend(*rows, 0.0, piece.mask is None, attn_mask=piece.added, scale=scale)
            results.append(result.transpose(1, 2).flatten(0, 1))
            weights.append(weight.transpose(1, 2).flatten(0, 1))
        out, weight = (torch.cat(x).index_select(0, pieces.places) for x in (results, weights))
        for asking, seen in pieces.beginnings:
            rows = (_wide(x.transpose(0, 1)[None]) for x in (q[asking], k[seen], v[seen]))
            result, more = (x[0].transpose(0, 1) for x in attend(*rows, 0.0, False, scale=scale))
            whole = torch.logaddexp(weight[asking], more)
            out[asking].lerp_(result, (more - whole).exp_()[..., None])
            weight[asking] = whole
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, weight)
        ctx.pieces, ctx.scale = pieces, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k, v, out, weight = ctx.saved_tensors
        pieces: Pieces = ctx.pieces
        to_k, to_v = (torch.zeros(x.shape, dtype=weight.dtype) for x in (k, v))
        gradients = list[Tensor]()
        for piece in pieces.own:
            at, by = piece.queries, piece.keys
            rows = [_wide(rows_of(x, y)) for x, y in ((gradient, at), (q, at), (k, by), (v, by), (out, at))]
            weights = rows_of(weight, at)
            if piece.repeated is not None:
                weights = weights.masked_fill(piece.repeated, torch.inf)
            asked = attend(*rows, weights, 0.0, piece.mask is None, attn_mask=piece.added, scale=ctx.scale)
            to_q, *others = (x.transpose(1, 2).flatten(0, 1) for x in asked)
            gradients.append(to_q)
            for whole, part in zip((to_k, to_v), others, strict=True):
                whole.index_add_(0, by.flatten(), part)
        to_q = torch.cat(gradients).index_select(0, pieces.places)
        for asking, seen in pieces.beginnings:
            parts = gradient[asking], q[asking], k[seen], v[seen], out[asking], weight[asking]
            asked = attend(*(_wide(x.transpose(0, 1)[None]) for x in parts), 0.0, False, scale=ctx.scale)
            for whole, where, part in zip((to_q, to_k, to_v), (asking, seen, seen), asked, strict=True):
                whole[where] += part[0].transpose(0, 1)
        return to_q.to(q.dtype), to_k.to(k.dtype), to_v.to(v.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 where it is in 16 bits: many processors compute in these by halves."""
    return x.float() if x.element_size() < 4 else x


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Return (m, heads, L, D) of (N, heads, D), or (m, heads, L) of (N, heads)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def keeps_nothing(query: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Say whether `attend` can: torch's kernel for CPUs knows neither dropout nor biases."""
    known = not any(options.get(name) for name in ("dropout", "softcap")) and options.get("position_bias") is None
    return known and query.device.type == "cpu" and query.element_size() <= 4 and query.shape[-1] == value.shape[-1]


def attend(q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float | None) -> Tensor:
    """Return (N, heads, D): attention over pieces, of which the backward pass gathers what it needs again."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    return Attention.apply(q, k, v, pieces, scale)


def by_torch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, **kwargs: Any) -> Tensor:
    """Return (N, heads, D): the same by torch's attention on any device, dropout included; no beginnings."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    results = []
    for piece in pieces.own:
        rows = rows_of(query, piece.queries), rows_of(key, piece.keys), rows_of(value, piece.keys)
        given = {**kwargs, "is_causal": piece.mask is None}
        results.append(sdpa_attention_forward(module, *rows, piece.mask, **given)[0].flatten(0, 1))
    joined = results[0] if len(results) == 1 else torch.cat(results)
    return joined.index_select(0, pieces.places)
