"""Attention over sequences that are concatenated without padding, and may share keys.

out[i] = Σ_j softmax_j(scale · q[i] · k[j]) v[j] over the keys j that query i sees

(Vaswani et al. 2017, arXiv:1706.03762.) A head of keys serves `groups` neighbouring heads of queries (Ainslie et al.
2023, arXiv:2305.13245). Everything is computed in fp32 (fp64 for fp64) and rounded once. For the backward pass the
log-sum-exp of each query is kept, and scores are recomputed (Dao et al. 2022, arXiv:2205.14135). As in schemas.py, a
registered compiled kernel replaces the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftengine.ops.autograd import apply
from ftengine.ops.eligibility import why_ineligible
from ftengine.ops.precision import without_autocast
from ftengine.ops.schemas import define

SCHEMAS = {
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor queries, Tensor keys, Tensor sizes, float scale, int window) "
    "-> (Tensor out, Tensor lse)",
    "attention_backward": "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor lse, Tensor queries, Tensor keys, "
    "Tensor sizes, float scale, int window) -> (Tensor dq, Tensor dk, Tensor dv)",
}


@dataclass(frozen=True)
class Sequences:
    """Which keys each query attends to; the last n keys of a sequence are those of its n queries.

    Query i of the n queries of a sequence with P keys attends to its first P - n + i + 1 keys.

    Args:
        queries: (Σ n,) int64 indices of the queries, each once.
        keys: (Σ P,) int64 indices of the keys of each sequence, in order.
        sizes: (sequences, 2) int64, n and P of each, 1 <= n <= P.
    """

    queries: Tensor
    keys: Tensor
    sizes: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float, window: int = 0) -> Tensor:
    """Return (N, heads, D): the attention of each query over its keys.

    Args:
        q: (N, heads, D).
        k, v: (Nk, key heads, D) in q's dtype, a divisor of its heads.
        sequences: the keys of each query.
        scale: factor of the scores.
        window: size of the sliding window, a query's own key included; 0: no window.
    """
    return apply(_Attention, q, k, v, sequences.queries, sequences.keys, sequences.sizes, scale, window)


def has_kernel(device: torch.device) -> bool:
    """Return whether a compiled kernel computes `attention` on a device, in the dtypes of the kernels."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("ftengine::attention", device.type.upper())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        ctx.refused = why_ineligible(q.device.type, q.dtype, 1, q.layout) is not None
        with without_autocast(q.device.type):
            out, lse = (_attention if ctx.refused else FORWARD)(q, k, v, *given)
        *tensors, ctx.scale, ctx.window = given
        ctx.save_for_backward(q, k, v, lse, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        call: Any = _attention_backward if ctx.refused else BACKWARD
        gradients: tuple[Tensor, ...] = call(dout.contiguous(), *ctx.saved_tensors, ctx.scale, ctx.window)
        return *gradients, *[None] * 5


def _attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, sizes: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    groups, wide = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    out, lse = q.new_zeros(q.shape), q.new_zeros(q.shape[:2], dtype=wide)
    for query, key, hidden in _each(queries, keys, sizes, window):
        own, read, values = _heads(q, query, 1), _heads(k, key, groups), _heads(v, key, groups)
        scores = (scale * own @ read.mT).masked_fill(hidden, -torch.inf)
        weights = torch.logsumexp(scores, -1)
        summed = (scores - weights[..., None]).exp() @ values
        out[query], lse[query] = summed.transpose(0, 1).to(q.dtype), weights.T
    return out, lse


def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    queries: Tensor,
    keys: Tensor,
    sizes: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v))
    for query, key, hidden in _each(queries, keys, sizes, window):
        own, slope = _heads(q, query, 1), _heads(dout, query, 1)
        read, values = _heads(k, key, groups), _heads(v, key, groups)
        scores = (scale * own @ read.mT).masked_fill(hidden, -torch.inf)
        weights = (scores - lse[query].T[..., None]).exp()
        slopes = slope @ values.mT
        inner = weights * (slopes - (weights * slopes).sum(-1, keepdim=True))
        dq[query] = scale * (inner @ read).transpose(0, 1)
        for whole, part in ((dk, scale * inner.mT @ own), (dv, weights.mT @ slope)):
            whole.index_add_(0, key, part.unflatten(0, (-1, groups)).sum(1).transpose(0, 1))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _each(queries: Tensor, keys: Tensor, sizes: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each sequence's queries, keys, and (n, P) the keys that each query does not see."""
    lengths = sizes.tolist()
    parts = zip(queries.split([n for n, _ in lengths]), keys.split([p for _, p in lengths]), strict=True)
    for query, key in parts:
        last = torch.arange(len(key) - len(query), len(key), device=keys.device)[:, None]
        places = torch.arange(len(key), device=keys.device)
        yield query, key, (places > last) | (places <= last - window if window else places < 0)


def _heads(x: Tensor, rows: Tensor, groups: int) -> Tensor:
    """Return (heads · groups, n, D) of some rows of (N, heads, D), in fp32 or fp64."""
    some = x.index_select(0, rows)
    return some.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).repeat_interleave(groups, 0)


def _shapes(q, k, v, queries, keys, sizes, scale, window):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)


def _shapes_backward(dout, q, k, v, lse, queries, keys, sizes, scale, window):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


FORWARD = define("attention", SCHEMAS["attention"], _attention, _shapes)
BACKWARD = define("attention_backward", SCHEMAS["attention_backward"], _attention_backward, _shapes_backward)
