"""By what columns are called and hold, which task data is made for: what `ftengine init` asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftengine.api import Example, Recognised
from ftengine_builtins.tasks.class_labels import as_number, with_point

TEXTS = ("text", "sentence", "content", "review", "description", "document", "body", "comment", "tweet", "title")
LABELS = ("label", "labels", "class", "category", "sentiment", "intent", "topic", "tag", "rating", "score", "target")
PAIRED = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"))
IMAGES = ("image", "img", "photo", "picture", "file_name", "filename", "path", "file")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LONGEST_LABEL = 60
"""Characters of a text that may be the name of a class."""


def first_of(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """Return the column that has one of the names, earlier names first; case does not count."""
    known = {column.lower(): column for column in columns}
    return next((known[name] for name in names if name in known), None)


def renamed(**columns: str) -> dict[str, str]:
    """Return what `data.columns` has to say, {ours: theirs} where they differ."""
    return {ours: theirs for ours, theirs in columns.items() if ours != theirs}


def recognise_text(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """See a text, or two of them, with a label."""
    label = label_of(columns, rows)
    if label is None:
        return None
    pairs = (tuple(first_of([name], columns) for name in pair) for pair in PAIRED)
    text, second = next((pair for pair in pairs if all(pair)), (None, None))
    if text is None:
        others = [column for column in columns if column != label]
        text = first_of(TEXTS, others) or (others[0] if len(others) == 1 else None)
    if text is None or not all(isinstance(row[text], str) for row in rows if row.get(text) is not None):
        return None
    options = {"pair": second} if second else {}
    return Recognised(3, renamed(text=text, label=label), options | kind_option(label, rows))


def recognise_images(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """See an image, a path or its bytes, with a label."""
    image, label = first_of(IMAGES, columns), label_of(columns, rows)
    if image is None or label is None or not all(_is_image(row.get(image)) for row in rows if row.get(image)):
        return None
    return Recognised(3, renamed(image=image, label=label), kind_option(label, rows))


def label_of(columns: Sequence[str], rows: Sequence[Example]) -> str | None:
    """Return the column of labels: by its name, and short or several times the same."""
    column = first_of(LABELS, columns)
    values = [value for row in rows if (value := row.get(column)) is not None] if column else []
    if any(isinstance(value, Mapping) for value in values):
        return None
    named = [value for value in values if isinstance(value, str)]
    numbers = all(_is_number(value) for value in values)
    few = numbers or _repeat(named) or len(named) < 10
    return column if values and few and all(len(value) <= LONGEST_LABEL for value in named) else None


def kind_option(label: str, rows: Sequence[Example]) -> dict[str, str]:
    """Return {"kind": "regression"} where labels are numbers and no classes: with fractions, or seldom the same."""
    values = [value for row in rows if (value := row.get(label)) is not None]
    if not all(_is_number(value) for value in values):
        return {}
    fractional = any(with_point(value) or not float(value).is_integer() for value in values)
    return {"kind": "regression"} if fractional or (len(values) >= 10 and not _repeat(values)) else {}


def _is_number(value: Any) -> bool:
    """Say whether a label is a number, also one with a decimal comma: a task then says how to write it."""
    return as_number(value) is not None or bool(with_point(value))


def _repeat(values: Sequence[Any]) -> bool:
    """Say whether most values occur several times."""
    return len(set(values)) <= max(1, len(values) / 2)


def _is_image(value: Any) -> bool:
    place = value.get("path") or "" if isinstance(value, Mapping) else value
    holds = isinstance(value, Mapping) and value.get("bytes") is not None
    return holds or (isinstance(place, str) and place.lower().endswith(IMAGE_SUFFIXES))
