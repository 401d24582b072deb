"""A batch without data, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def probe_tokens(module: nn.Module) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, (2, 16) int64 of random tokens.

    At the end of each row, nowhere else, is the token that ends texts: classifiers of encoder-decoders read its state.
    """
    model: Any = module
    generator = torch.Generator().manual_seed(0)
    tokens = model.get_input_embeddings().num_embeddings
    ids = torch.randint(tokens, (2, 16), generator=generator)
    end = getattr(getattr(module, "config", None), "eos_token_id", None)
    if isinstance(end, int) and end < tokens:
        ids[ids == end] = (end + 1) % tokens
        ids[:, -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def raw_outputs(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return a model's logits for a batch, whose labels it is not given."""
    output = module(**{key: value for key, value in batch.items() if key != "labels"})
    return output.logits if hasattr(output, "logits") else output
