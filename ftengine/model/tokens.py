"""From text to tokens: length limits, labels, beginnings of words, and batches of tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ftengine.api import Features
from ftengine.errors import RecipeError
from ftengine.text import CJK

if TYPE_CHECKING:
    from torch import Tensor

    from ftengine.api import Batch

IGNORED = -100
"""Label of a token that is not trained on, as everywhere in torch and transformers."""

Span = tuple[int, int]
"""First character and the one after the last."""

_WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s]")

LONG_TEXT = 1 << 17
"""Characters up to which a text is always read as a whole. Tokenizers take 400 bytes a character, and all of a text,
whatever is kept of it; audits, which look for kinds of things, read no more of one either."""
_WORD_END = re.compile(r"(?<=\w)\W")
"""A blank or a sign behind a word, in front of which tokenizers divide a text."""


SHORTEST_PREFIX = 8
"""Tokens that rows must begin with alike for these to be computed once."""


def length_limit(requested: int | None, model_limit: int | None, default: int, option: str = "max_length") -> int:
    """Return the longest input in tokens: the task's option, else `default` or the model's limit, whichever is less.

    Raises:
        RecipeError: the option exceeds the model's limit; the message names the option.
    """
    if requested is None:
        return min(default, model_limit or default)
    if model_limit is not None and requested > model_limit:
        raise RecipeError(
            f"{option} {requested} (recipe key task.{option}) is more than the {model_limit} tokens that this "
            f"model reads. Set at most {model_limit}, or leave it out."
        )
    return requested


def tokenize(processor: Any, *texts: str, limit: int, side: str | None = None, **options: Any) -> Features:
    """Return a tokenizer's fields of one or two texts, cut to `limit` tokens, as an example of weight 1.

    Of two texts the longer one is cut first. `options` are passed to the tokenizer. The full length of a very long text
    is estimated (`part_within`).

    Args:
        side: which end is cut off, "left" or "right"; None: the tokenizer's own `truncation_side`.
    """
    options |= {"return_attention_mask": False, "verbose": False}
    own = getattr(processor, "truncation_side", "right")
    left = (side or own) == "left"
    cut = [part_within(processor, text, limit, left=left) for text in texts]
    parts = [part for part, _ in cut]
    encoded = processor(*parts, **options)
    full = full_length(len(encoded["input_ids"]), "".join(texts), "".join(parts))
    if full > limit:
        set_truncation_side(processor, side)
        encoded = processor(*parts, truncation=True, max_length=limit, **options)
        set_truncation_side(processor, own)  # another task may read with it too
    if "offset_mapping" in encoded and (start := cut[0][1]):
        encoded["offset_mapping"] = [(first + start, last + start) for first, last in encoded["offset_mapping"]]
    ids = encoded["input_ids"]
    unknown = unknown_in(ids, processor)
    return Features(dict(encoded), len(ids), 1, full > limit, full_length=full, unknown=unknown)


def set_truncation_side(processor: Any, side: str | None) -> None:
    """Set the side, "left" or "right", on which a tokenizer truncates; None keeps its own."""
    if side is not None and hasattr(processor, "truncation_side"):
        processor.truncation_side = side


def part_within(processor: Any, text: str, limit: int, *, left: bool = False) -> tuple[str, int]:
    """Return the part of a very long text with its first (if `left`, last) `limit` tokens, and the part's start."""
    size = LONG_TEXT if limit < 2 * len(text) else len(text)  # a character has four bytes, and so tokens, at most
    while size < len(text):
        # Where a word is cut in front, merges of its letters would begin elsewhere; behind, they are in order.
        match = _WORD_END.search(text, len(text) - size, len(text) - size // 2) if left else None
        start = match.start() if match else len(text) - size if left else 0
        part = text[start:] if left else text[:size]
        if len(_plain_ids(processor, part)) >= 2 * limit:
            return part, start
        size *= 2
    return text, 0


def prompt_tokens(processor: Any, text: str, limit: int | None) -> list[int]:
    """Return a prompt's tokens without special ones; of a very long text, more than `limit` of its last tokens."""
    part = text if limit is None else part_within(processor, text, limit, left=True)[0]
    return _plain_ids(processor, part)


def full_length(tokens: int, text: str, part: str) -> int:
    """Return the number of tokens in a text; estimated from a part of it if the text is very long."""
    return tokens if len(part) == len(text) else round(tokens * len(text) / len(part))


def _plain_ids(processor: Any, text: str) -> list[int]:
    return processor(text, add_special_tokens=False, verbose=False)["input_ids"]


def unknown_in(ids: Sequence[int], processor: Any) -> int | None:
    """Count the unknown tokens, which replace text that the tokenizer has no token for.

    None if there is no such token, or if it also ends texts or pads, like GPT-2's.
    """
    unknown = getattr(processor, "unk_token_id", None)
    others = (processor.bos_token_id, processor.eos_token_id, processor.pad_token_id) if unknown is not None else ()
    return None if unknown is None or unknown in others else ids.count(unknown)


def joined(parts: Sequence[Features], inputs: dict[str, Any], weight: float) -> Features:
    """Return an example with these inputs of several sequences joined."""
    return Features(
        inputs,
        length=sum(part.length for part in parts),
        weight=weight,
        truncated=any(part.truncated for part in parts),
        longest=max(part.length for part in parts),
        full_length=max(part.full_length or 0 for part in parts),
        unknown=unknown_of_all(parts),
    )


def unknown_of_all(features: Iterable[Features]) -> int | None:
    """Return the number of unknown tokens in several sequences; None if the count of one is not available."""
    counts = [example.unknown for example in features]
    return None if None in counts else sum(filter(None, counts))


def missing_end(ids: Sequence[int], processor: Any) -> list[int]:
    """Return the EOS token to append; none if the text or the tokenizer adds it."""
    eos = processor.eos_token_id
    return [] if eos is None or ids[-1:] == [eos] else [eos]


def common_prefix(some: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> int:
    """Return the length of two rows' common prefix in tokens; 0 below `SHORTEST_PREFIX`, which is not worth sharing."""
    most = min(len(some), len(other))
    different = np.flatnonzero(np.asarray(some[:most]) != np.asarray(other[:most]))
    shared = int(different[0]) if len(different) else most
    return shared if shared >= SHORTEST_PREFIX else 0


def pad(sequences: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Pad to the longest sequence, on the right unless `left`; returns (sequences, longest) int64."""
    import torch

    longest = max(map(len, sequences))
    padded = torch.full((len(sequences), longest), value, dtype=torch.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        place = slice(longest - len(sequence), None) if left else slice(len(sequence))
        row[place] = torch.tensor(sequence, dtype=torch.int64)
    return padded


def attention_mask(sequences: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    """Return 1 at tokens and 0 at the padding that `pad` adds."""
    return pad([[1] * len(sequence) for sequence in sequences], 0, left=left)


def stack_tokens(inputs: Sequence[Mapping[str, Any]], processor: Any) -> Batch:
    """Return input_ids, attention_mask and, if present, token_type_ids and labels, padded on the right."""
    ids = [example["input_ids"] for example in inputs]
    batch = {"input_ids": pad(ids, processor.pad_token_id or 0), "attention_mask": attention_mask(ids)}
    for key, filler in (("token_type_ids", 0), ("labels", IGNORED)):
        if key in inputs[0]:
            batch[key] = pad([example[key] for example in inputs], filler)
    return batch


def encode_spans(processor: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Tokenise a text as a whole and label the tokens that hold any character of a span (in order, disjoint).

    A token that spans the end of a prompt and the beginning of an answer is labelled: otherwise the answer's first
    characters would never be learnt. No BOS or EOS is added. A tokenizer without offsets tokenises each stretch of text
    by itself.

    Returns:
        (input_ids, labels), both (tokens,); labels are `IGNORED` outside of spans.
    """
    if not processor.is_fast:
        return _encode_apart(processor, text, spans)
    encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    ends = offsets[:, 1]
    starts = np.minimum(offsets[:, 0], ends - 1)  # tokenizers may trim a blank token's offset to nothing, at its end
    labels = np.full(len(ids), IGNORED)
    for first, stop in spans:
        inside = (starts < stop) & (first < ends)
        labels[inside] = np.array(ids, dtype=np.int64)[inside]
    return ids, labels.tolist()


def _encode_apart(processor: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        piece = _plain_ids(processor, text[start:end]) if end > start else []
        ids += piece
        labels += piece if number % 2 else [IGNORED] * len(piece)
    return ids, labels


def find_words(text: str) -> list[Span]:
    """Cut a text into words and punctuation marks."""
    return [match.span() for match in _WORD.finditer(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[Span]]:
    """Join words with spaces and return the text and the span of each word."""
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), spans


def encode_words(processor: Any, text: str, words: Sequence[Span], limit: int) -> tuple[Features, list[int | None]]:
    """Tokenise a text, with the tokenizer's special tokens, and find the first token of each word.

    Args:
        words: in order and disjoint.
        limit: longest input in tokens; the rest is cut off.

    Returns:
        (what `tokenize` returns, for each word the position of its first token). The position is None for words that
        were cut off, or of which the tokenizer leaves nothing.

    Raises:
        RecipeError: the tokenizer does not return offsets.
    """
    if not getattr(processor, "is_fast", False):
        raise RecipeError(
            f"{type(processor).__name__} does not say where in the text its tokens are, which tagging words needs. Use "
            "a model with a fast tokenizer (tokenizer.json)."
        )
    features = tokenize(processor, text, limit=limit, return_offsets_mapping=True)
    return features, _first_tokens(features.inputs.pop("offset_mapping"), words)


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
