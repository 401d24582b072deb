"""The two shapes of row whose words have tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ftengine.api import Example, Recognised
from ftengine.errors import DataError, column_names, did_you_mean, shown
from ftengine.model.tokens import Span, find_words, join_words
from ftengine_builtins.tasks.class_labels import read_name
from ftengine_builtins.tasks.iob2 import Entity, tagged
from ftengine_builtins.tasks.language_rows import read_text
from ftengine_builtins.tasks.recognising import first_of, renamed

SHAPES = "`tokens` and `tags` (two lists of equal length), or `text` and `spans` (a list of {start, end, label})"
_OTHER_NAMES = {"tokens": ("words",), "tags": ("ner_tags", "labels", "pos_tags"), "spans": ("entities", "ents")}


@dataclass(frozen=True)
class Tagged:
    """A text as the model reads it, with the positions of its words, and their tags if they were read.

    `is_text` says whether the row gave a text, rather than its words.
    """

    text: str
    words: Sequence[Span]
    is_text: bool
    tags: Sequence[str] = ()


def check_columns(columns: Sequence[str]) -> None:
    """Refuse data that has neither shape (DataError, with the columns, the shapes, and a plausible renaming)."""
    if {"tokens", "tags"} <= set(columns) or {"text", "spans"} <= set(columns):
        return
    by_name = {ours: name for ours, theirs in _OTHER_NAMES.items() for name in theirs if name in columns}
    renaming = ", ".join(f"{ours}: {name}" for ours, name in by_name.items() if ours not in columns)
    raise DataError(
        f"the data has columns {column_names(columns) or '(none)'}; tagging needs {SHAPES}. Rename columns with "
        f"data.columns, e.g. {{{renaming or 'tags: COLUMN'}}}."
    )


def recognise(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise words with tags, or a text with spans, also under other column names."""
    for shape in (("tokens", "tags"), ("text", "spans")):
        by_name = {ours: first_of((ours, *_OTHER_NAMES.get(ours, ())), columns) for ours in shape}
        lists = all(isinstance(row.get(by_name[shape[1]] or ""), (list, tuple)) for row in rows)
        if all(by_name.values()) and lists:
            return Recognised(3, renamed(**{ours: theirs for ours, theirs in by_name.items() if theirs}))
    return None


def read_words(example: Example) -> Tagged:
    """Read a row's words without their tags (DataError: there are none, or they are of another type)."""
    tokens = example.get("tokens")
    if tokens is None:
        if example.get("text") is None:
            raise DataError(f"the row has neither `tokens` nor `text`; tagging needs {SHAPES}.")
        text = read_text(example, "text")
        return Tagged(text, find_words(text), True)
    if not isinstance(tokens, (list, tuple)):
        raise DataError(f"`tokens` is {shown(tokens)}; it must be a list of words.")
    if not tokens:
        raise DataError("`tokens` is empty; it must hold at least one word.")
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str) or not token.strip():
            raise DataError(f"token {number} is {shown(token)}; it must be text that is not blank.")
    return Tagged(*join_words(tokens), False)


def read_tagged(example: Example, names: Sequence[str] | None) -> Tagged:
    """Read a row's words and tags (DataError: they do not fit); `names` are the names of numeric tags."""
    row = read_words(example)
    if row.is_text:
        return replace(row, tags=tagged(len(row.words), _entities(example.get("spans"), row)))
    tags = example.get("tags")
    if not isinstance(tags, (list, tuple)):
        raise DataError(f"`tags` is {shown(tags)}; it must be a list with a tag for each token.")
    if len(tags) != len(row.words):
        raise DataError(f"the row has {len(row.words)} tokens and {len(tags)} tags; each token needs one.")
    return replace(row, tags=[_tag(tag, names) for tag in tags])


def with_words(example: Example, words: Sequence[str]) -> Example:
    """Return the row with changed words, as many as before, so that tags still fit (DataError: it cannot be read).

    A change that would empty, split or join a word is not made. Spans of a text are widened to whole words.
    """
    row = read_words(example)
    if not row.is_text:
        pairs = zip(example["tokens"], words, strict=True)
        return {**example, "tokens": [new if len(new.split()) == 1 else word for word, new in pairs]}
    spans = example.get("spans")
    inside = _entities(spans, row)  # in the order of their words
    text, places = _changed_text(row, words)
    order = sorted(range(len(spans)), key=lambda i: (spans[i]["start"], spans[i]["end"]))
    moved = list(spans)
    for i, (_, first, stop) in zip(order, inside, strict=True):
        moved[i] = {**spans[i], "start": places[first][0], "end": places[stop - 1][1]}
    return {**example, "text": text, "spans": moved}


def _changed_text(row: Tagged, others: Sequence[str]) -> tuple[str, list[Span]]:
    """Return a text with its words changed, and their new positions."""
    starts = [start for start, _ in row.words]
    pieces = [row.text[: starts[0] if starts else None]]
    words: list[Span] = []
    before, at = "", len(pieces[0])
    for (start, stop), after, new in zip(row.words, [*starts[1:], len(row.text)], others, strict=True):
        word, tail = row.text[start:stop], row.text[stop:after]
        # Seen with what stands beside it, it has to be the one word that it was.
        beside = before + new + tail + row.text[after : after + 1]
        if (len(before), len(before) + len(new)) not in find_words(beside):
            new = word
        pieces += [new, tail]
        words.append((at, at + len(new)))
        at += len(new) + len(tail)
        before = "" if tail else new[-1:]
    return "".join(pieces), words


def _tag(value: Any, names: Sequence[str] | None) -> str:
    if names is None or isinstance(value, str):
        return read_name(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(names):
        raise DataError(f"tag {shown(value)} has no name; task.names has {len(names)}, for the numbers from 0.")
    return names[value]


def _entities(spans: Any, row: Tagged) -> list[Entity]:
    """Return spans in words instead of characters (DataError: one is malformed, holds no word, or overlaps another)."""
    if not isinstance(spans, (list, tuple)):
        raise DataError(f"`spans` is {shown(spans)}; it must be a list of {{start, end, label}}, empty for none.")
    ordered = sorted((_entity(span, row) for span in spans), key=lambda entity: entity[1:])
    for (before, _, end), (after, start, _) in pairwise(ordered):
        if start < end:
            raise DataError(f"spans {before!r} and {after!r} share a word; a word has one tag.")
    return ordered


def _entity(span: Any, row: Tagged) -> Entity:
    if not isinstance(span, Mapping) or not {"start", "end", "label"} <= span.keys():
        keys = list(span) if isinstance(span, Mapping) else []
        raise DataError(
            f"a span is {shown(span)}; it must have `start`, `end` and `label`."
            + next((hint for key in ("start", "end", "label") if (hint := did_you_mean(key, keys))), "")
        )
    start, end, label = span["start"], span["end"], read_name(span["label"])
    integers = all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end))
    if not integers or not 0 <= start < end <= len(row.text):
        raise DataError(
            f"span {label!r} is from {shown(start)} to {shown(end)}; the text has the characters 0 to {len(row.text)}."
        )
    inside = [i for i, (a, b) in enumerate(row.words) if a < end and start < b]
    if not inside:
        raise DataError(f"span {label!r} ({start} to {end}) holds no word: {shown(row.text[start:end])}.")
    return label, inside[0], inside[-1] + 1
