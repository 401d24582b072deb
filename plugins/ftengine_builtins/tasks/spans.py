"""Text with spans that are trained on, as tokens with labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ftengine_builtins.tasks.token_loss import IGNORED

Span = tuple[int, int]
"""First character and the one after the last."""


def encode_spans(processor: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Tokenise a text as a whole and label the tokens that hold any character of a span (in order, disjoint).

    A token that merges the end of a prompt with the beginning of an answer is labelled: otherwise the answer's first
    characters would never be learnt. Nothing is added to the text, no BOS and no EOS. A tokenizer without offsets
    tokenises each stretch of text by itself.

    Returns:
        (input_ids, labels), both (tokens,); labels are `IGNORED` outside of spans.
    """
    if not processor.is_fast:
        return _encode_apart(processor, text, spans)
    encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    trained = (_overlaps(offset, spans) for offset in encoded["offset_mapping"])
    return ids, [token if hit else IGNORED for token, hit in zip(ids, trained, strict=True)]


def _overlaps(offset: Span, spans: Sequence[Span]) -> bool:
    start, end = offset
    start = min(start, end - 1)  # tokenizers may trim a blank token's offset to nothing, at its end
    return any(start < stop and first < end for first, stop in spans)


def _encode_apart(processor: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        piece = processor(text[start:end], add_special_tokens=False, verbose=False)["input_ids"] if end > start else []
        ids += piece
        labels += piece if number % 2 else [IGNORED] * len(piece)
    return ids, labels
