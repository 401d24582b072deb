"""The shared beginning of a batch's prompts, read once before they are answered."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ftengine_builtins.fast_paths.shared_prefix.sharing import WORTH, supports_prefix_sharing
from ftengine_builtins.fast_paths.shared_prefix.tree import SHORTEST


def prefill_prefix(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Return arguments for `generate` in place of prompts, with the keys and values of their common beginning.

    It precedes a prompt's padding then. Returns nothing if the beginning is short, or if results may differ: with
    sliding windows, which count padding, or another kind of cache.

    Args:
        ids, mask: (B, T), padded on the left.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    padding = (ids.shape[1] - mask.sum(1)).tolist()
    rows = [row[count:] for row, count in zip(ids, padding, strict=True)]
    shortest = min(map(len, rows)) - 1  # each has a token left, of which the next one follows
    first = torch.stack([row[:shortest] for row in rows])
    apart = (first != first[0]).any(0).nonzero()
    shared = int(apart[0]) if len(apart) else shortest
    saved = shared * (len(rows) - 1)
    divided = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if divided or shared < SHORTEST or saved < (1 - WORTH) * ids.numel() or not supports_prefix_sharing(model):
        return {}
    stack = model.get_decoder()
    name = "cache" if "cache" in inspect.signature(type(stack).forward).parameters else "past_key_values"
    cache = DynamicCache(config=stack.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return {}
    stack(input_ids=rows[0][None, :shared], use_cache=True, **{name: cache})
    if cache.get_seq_length() != shared:  # virtual tokens stand in front
        return {}
    cache.batch_repeat_interleave(len(rows))
    moved = (
        torch.stack([torch.cat([x[n : n + shared], x[:n], x[n + shared :]]) for x, n in zip(of, padding, strict=True)])
        for of in (ids, mask)
    )
    return {**dict(zip(("input_ids", "attention_mask"), moved, strict=True)), name: cache}
