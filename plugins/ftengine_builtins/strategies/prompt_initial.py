"""Where virtual tokens start: at random, at tokens drawn from the vocabulary, or at a text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError

SAMPLED_ROWS = 4096
"""Rows of the embedding table that its scale is measured on; all of a large one would be copied for little."""


def text_tokens(loaded: LoadedModel, text: str, count: int) -> Tensor:
    """Return (count,) token ids of a text, without special tokens, repeated or cut to length.

    Raises:
        RecipeError: the model has no tokenizer, or the text has no tokens.
    """
    if not callable(loaded.processor):
        raise RecipeError(
            f"strategy.init is text, but {loaded.source!r} has no tokenizer. Set strategy.init=vocabulary."
        )
    ids = loaded.processor(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise RecipeError(f"strategy.text {text!r} has no tokens in this model's vocabulary. Give it some words.")
    return torch.tensor((ids * math.ceil(count / len(ids)))[:count])


def sampled_tokens(loaded: LoadedModel, embedding: nn.Embedding, count: int) -> Tensor:
    """Return (count,) ids of ordinary tokens, drawn uniformly.

    The table may have more rows than the tokenizer has tokens, and special tokens are of another kind.
    """
    processor: Any = loaded.processor
    known = min(len(processor), embedding.num_embeddings) if hasattr(processor, "get_vocab") else None
    usable = torch.ones(known or embedding.num_embeddings, dtype=torch.bool)
    usable[[token for token in getattr(processor, "all_special_ids", ()) if token < len(usable)]] = False
    candidates = usable.nonzero()[:, 0] if usable.any() else torch.arange(len(usable))
    return candidates[torch.randint(len(candidates), (count,))]


@torch.no_grad()
def embedded(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """Return the embeddings (count, width) of tokens in float32, as the model reads them."""
    return embedding(ids.to(embedding.weight.device)).float()


def random_vectors(embedding: nn.Embedding, count: int) -> Tensor:
    """Return (count, width) normal numbers in float32, of the token embeddings' standard deviation."""
    ids = torch.linspace(0, embedding.num_embeddings - 1, min(SAMPLED_ROWS, embedding.num_embeddings)).long()
    sample = embedded(embedding, ids)
    # Drawn on the CPU, so that a seed means the same on every device.
    return torch.randn(count, sample.shape[1]).to(sample.device) * sample.std()


def starting_vectors(loaded: LoadedModel, embedding: nn.Embedding, init: str, text: str | None, count: int) -> Tensor:
    """Return (count, width) vectors to start from, on the embedding's device.

    Args:
        loaded: the model, for its tokenizer.
        embedding: its token embeddings.
        init: "random", "vocabulary" or "text".
        text: what to start from with "text".
        count: number of virtual tokens.

    Raises:
        RecipeError: the text cannot be tokenised.
    """
    if init == "random":
        return random_vectors(embedding, count)
    return embedded(embedding, starting_tokens(loaded, embedding, init, text, count))


def starting_tokens(loaded: LoadedModel, embedding: nn.Embedding, init: str, text: str | None, count: int) -> Tensor:
    """Return (count,) token ids: those of the text, or drawn from the vocabulary.

    Raises:
        RecipeError: the text cannot be tokenised.
    """
    if init != "text":
        return sampled_tokens(loaded, embedding, count)
    if loaded.processor is None and embedding.weight.is_meta:
        return torch.zeros(count, dtype=torch.long)  # parameters are counted from a config alone, without a tokenizer
    return text_tokens(loaded, text or "", count)
