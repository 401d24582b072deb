"""Checks that a model can read the examples: it has embeddings for their tokens and takes their length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ftengine.api import LoadedModel
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import RecipeError, SourceError


def require_fit(loaded: LoadedModel, splits: Iterable[EncodedSplit]) -> None:
    """Check that the model has embeddings for the tokenizer's tokens and takes the longest example.

    The check uses the model without weights as soon as rows are encoded, else the loaded one.

    Raises:
        SourceError: the tokenizer has more tokens than the model has embeddings; the message names a row.
        RecipeError: an example is longer than the model's input.
    """
    for split in splits:
        token, row = split.largest
        if token >= 0 and (size := vocabulary_size(loaded.module)) is not None and token >= size:
            raise SourceError(_unknown_token(loaded.source, split.processor, token, size, split.rows.where(row)))
        if loaded.max_length is not None and split.longest > loaded.max_length:
            raise RecipeError(
                f"the longest example of {split.rows.source} has {split.longest} tokens, the model takes "
                f"{loaded.max_length}. Set task.max_length={loaded.max_length}, or less."
            )
        split.room = loaded.max_length  # examples may grow when they are augmented


@contextmanager
def tokens_checked(loaded: LoadedModel, where: str) -> Iterator[None]:
    """Raise SourceError, naming the rows `where`, if the model is given a token id without an embedding."""
    module: Any = loaded.module
    if (size := vocabulary_size(module)) is None:
        yield
        return

    def check(embeddings: Any, args: tuple[Any, ...]) -> None:
        for ids in args[:1]:
            countable = isinstance(ids, torch.Tensor) and not ids.is_floating_point() and ids.numel()
            if countable and (token := int(ids.max())) >= size:
                raise SourceError(_unknown_token(loaded.source, loaded.processor, token, size, where))

    # Encoders and decoders may have modules of their own for the one weight.
    weight = module.get_input_embeddings().weight
    sharing = [part for part in module.modules() if getattr(part, "weight", None) is weight]
    handles = [part.register_forward_pre_hook(check) for part in sharing]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unknown_token(source: str, processor: Any, token: int, size: int, where: str) -> str:
    return (
        f"{where}: the tokenizer of {source!r} gives a token with the id {token:,} "
        f"({processor.convert_ids_to_tokens(token)!r}), but the model has {size:,} embeddings. They do not "
        "belong together: take the model's own tokenizer, or one whose tokens were added to the model too."
    )


def vocabulary_size(module: Any) -> int | None:
    """Return the number of token embeddings of a model; None where it is unknown."""
    try:
        weight: Any = module.get_input_embeddings().weight
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return len(weight)
