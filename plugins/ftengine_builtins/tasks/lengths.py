"""How long an input may be, and how inputs of different lengths become one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftengine.api import Batch, Features
from ftengine.errors import RecipeError
from ftengine_builtins.tasks.token_loss import IGNORED


def length_limit(wanted: int | None, model_limit: int | None, default: int, option: str = "max_length") -> int:
    """Return the longest input in tokens: the task's option, or `default`, or the model's limit where that is less.

    Raises:
        RecipeError: more is wanted than the model reads; names the option.
    """
    if wanted is None:
        return min(default, model_limit or default)
    if model_limit is not None and wanted > model_limit:
        raise RecipeError(
            f"{option} {wanted} (recipe key task.{option}) is more than the {model_limit} tokens that this "
            f"model reads. Set at most {model_limit}, or leave it out."
        )
    return wanted


def tokenize(processor: Any, *texts: str, limit: int, **options: Any) -> Features:
    """Return a tokenizer's fields of one or two texts, cut to `limit` tokens, with the counts of `Task.encode`.

    Of two texts the longer one is cut first. `options` are the tokenizer's.
    """
    options |= {"return_attention_mask": False, "verbose": False}
    encoded = processor(*texts, **options)
    full = len(encoded["input_ids"])
    if full > limit:
        encoded = processor(*texts, truncation=True, max_length=limit, **options)
    ids = encoded["input_ids"]
    counts = {"length": len(ids), "full_length": full, "truncated": full > limit}
    return {**encoded, **counts, "unknown": unknown_in(ids, processor)}


def unknown_in(ids: Sequence[int], processor: Any) -> int | None:
    """Count the tokens that stand for text which the tokenizer has no token for.

    None where it has no such token, or one that ends texts or fills gaps as well, as that of GPT-2.
    """
    unknown = getattr(processor, "unk_token_id", None)
    others = (processor.bos_token_id, processor.eos_token_id, processor.pad_token_id) if unknown is not None else ()
    return None if unknown is None or unknown in others else ids.count(unknown)


def missing_end(ids: Sequence[int], processor: Any) -> list[int]:
    """Return the EOS that ends a text, unless the text or the tokenizer brings it."""
    eos = processor.eos_token_id
    return [] if eos is None or ids[-1:] == [eos] else [eos]


def pad(sequences: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Pad to the longest sequence, on the right unless `left`; returns (sequences, longest) int64."""
    longest = max(map(len, sequences))
    padded = torch.full((len(sequences), longest), value, dtype=torch.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        place = slice(longest - len(sequence), None) if left else slice(len(sequence))
        row[place] = torch.tensor(sequence, dtype=torch.int64)
    return padded


def attention_mask(sequences: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    """Return 1 at tokens and 0 at the padding that `pad` adds."""
    return pad([[1] * len(sequence) for sequence in sequences], 0, left=left)


def stack_tokens(features: Sequence[Features], processor: Any) -> Batch:
    """Pad input_ids, token_type_ids and labels on the right, where there are some; all (examples, longest) int64."""
    ids = [f["input_ids"] for f in features]
    batch = {"input_ids": pad(ids, processor.pad_token_id or 0), "attention_mask": attention_mask(ids)}
    for key, filler in (("token_type_ids", 0), ("labels", IGNORED)):
        if key in features[0]:
            batch[key] = pad([f[key] for f in features], filler)
    return batch
