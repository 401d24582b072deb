"""Words of a text, and which token begins each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ftengine.api import Features
from ftengine.errors import RecipeError
from ftengine_builtins.tasks.lengths import tokenize

Span = tuple[int, int]
"""First character and the one after the last."""

# Chinese and Japanese are written without blanks; each of their characters is a word here.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def find_words(text: str) -> list[Span]:
    """Cut a text into words and punctuation marks."""
    return [match.span() for match in _WORD.finditer(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[Span]]:
    """Write words as a text with blanks between them, and say where each is."""
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), spans


def encode_words(processor: Any, text: str, words: Sequence[Span], limit: int) -> tuple[Features, list[int | None]]:
    """Tokenise a text, with the tokenizer's special tokens, and find the first token of each word.

    Args:
        words: in order and disjoint.
        limit: longest input in tokens; what is beyond is cut off.

    Returns:
        (what `tokenize` returns, for each word the position of its first token). The position is None for words that
        were cut off, or of which the tokenizer leaves nothing.

    Raises:
        RecipeError: the tokenizer tells no offsets.
    """
    if not getattr(processor, "is_fast", False):
        raise RecipeError(
            f"{type(processor).__name__} does not say where in the text its tokens are, which tagging words needs. Use "
            "a model with a fast tokenizer (tokenizer.json)."
        )
    fields = tokenize(processor, text, limit=limit, return_offsets_mapping=True)
    return fields, _first_tokens(fields.pop("offset_mapping"), words)


def _first_tokens(offsets: Sequence[Span], words: Sequence[Span]) -> list[int | None]:
    first: list[int | None] = [None] * len(words)
    word = 0
    for position, (start, stop) in enumerate(offsets):
        while word < len(words) and words[word][1] <= start:
            word += 1
        # Special tokens have no extent. A token over several words begins the first of them that has none yet.
        reached = word
        while start < stop and reached < len(words) and words[reached][0] < stop:
            if first[reached] is None:
                first[reached] = position
                break
            if words[reached][1] >= stop:
                break
            reached += 1
    return first
