"""Attention over a prefix tree: from each row's new tokens (queries) to its whole row (keys).

On a CPU by a kernel that reads keys in place, without copies or padding; elsewhere by torch's attention over pieces of
similar size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.ops.attention import Sequences, attention, has_kernel
from ftengine.ops.eligibility import DTYPES
from ftengine.ops.precision import compute_dtype


@dataclass(frozen=True)
class Piece:
    """The new tokens of some rows, with the tokens that they attend to.

    Args:
        queries: (m, L) indices of tokens in the prefix tree; shorter rows repeat their last token.
        keys: (m, P) indices of the tokens that they attend to.
        mask: (m, 1, L, P), the keys that a query attends to; None: causal.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Pieces:
    """All pieces of a prefix tree.

    Args:
        own: the pieces, in which each query occurs once.
        places: the position of each query's result in the concatenated results.
    """

    own: Sequence[Piece]
    places: Tensor


def compiled(query: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Return whether `by_kernel` can be used: it supports neither dropout nor capped scores nor biases."""
    if any(options.get(name) for name in ("dropout", "softcap")) or options.get("position_bias") is not None:
        return False
    alike = query.shape[-1] == value.shape[-1] and has_kernel(query.device)
    return alike and compute_dtype(query.device.type, query.dtype) in DTYPES[query.device.type]


def by_kernel(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float | None, window: int) -> Tensor:
    """Return (N, heads, D): attention of queries (N, heads, D) over the keys and values of a prefix tree."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    return attention(q, k, v, sequences, q.shape[-1] ** -0.5 if scale is None else scale, window)


def by_torch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, **kwargs: Any) -> Tensor:
    """Return (N, heads, D): the same by torch's attention on any device, dropout included."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    results = []
    for piece in pieces.own:
        rows = _rows(query, piece.queries), _rows(key, piece.keys), _rows(value, piece.keys)
        given = {**kwargs, "is_causal": piece.mask is None}
        results.append(sdpa_attention_forward(module, *rows, piece.mask, **given)[0].flatten(0, 1))
    joined = results[0] if len(results) == 1 else torch.cat(results)
    return joined.index_select(0, pieces.places)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Return (m, heads, L, D) of (N, heads, D)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
