"""Recognition of a task's data by the names and values of columns, for `ftengine init`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftengine.api import Example, Recognised
from ftengine_builtins.tasks.class_labels import LEAST_VALUES, as_number, with_point
from ftengine_builtins.unpaired_layouts import are_unpaired

TEXTS = ("text", "sentence", "content", "review", "description", "document", "body", "comment", "tweet", "title")
_ENGLISH = ("label", "labels", "class", "category", "sentiment", "intent", "topic", "tag", "rating", "score", "target")
_GERMAN = ("klasse", "kategorie", "stimmung", "thema", "bewertung", "sterne")
_ROMANCE = ("clase", "classe", "categoría", "categoria", "catégorie", "etiqueta", "étiquette")
LABELS = (*_ENGLISH, "stars", *_GERMAN, *_ROMANCE)
SCORES = ("score", "similarity", "similarity_score")
"""Names of columns with the similarity of two texts."""
PAIRED = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"))
QUERIED = (("query", "document"), ("query", "passage"), ("query", "text"))
"""Pairs of which the second may answer the first."""
IMAGES = ("image", "img", "photo", "picture", "file_name", "filename", "path", "file")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LONGEST_LABEL = 60
"""Characters of a text that may be the name of a class."""
SEPARATORS = (";", "|", ",")
"""What may stand between the labels of a row."""
LEAST_GRADES, MOST_GRADES = 3, 10
"""Whole numbers that may be grades, such as stars or points: at least so many different ones, from first to last no
further than this."""
_ANOTHER = "To learn another column, name that in data.columns (label: …)."
_NUMBER = re.compile(r"\b\d+\b")
MOST_CLASSES, ROWS_AN_ANSWER = 50, 5
"""A column of another name holds labels where it has at most so many values, each in so many rows on average."""


def first_of(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """Return the column with one of the names, earlier names first; case is ignored."""
    by_lower_name = {column.lower(): column for column in columns}
    return next((by_lower_name[name] for name in names if name in by_lower_name), None)


def renamed(**columns: str) -> dict[str, str]:
    """Return the entries of `data.columns`, {our name: their name} for names that differ."""
    return {ours: theirs for ours, theirs in columns.items() if ours != theirs}


def recognise_text(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise a text, or two texts, with a label."""
    label, certainty = label_of(columns, rows), 1 if are_unpaired(columns, rows) else 3
    guessed = {} if label else _candidates(columns, rows)
    if len(guessed) > 1:
        return _in_doubt(guessed, columns, rows)
    if guessed:
        (label, separator), certainty = next(iter(guessed.items())), 1
        if separator:
            return _several_labels(label, separator, columns)
    if label is None:
        return None
    pairs = [tuple(first_of([name], columns) for name in pair) for pair in (*QUERIED, *PAIRED)]
    text, second = next((pair for pair in pairs if all(pair)), (None, None))
    if second and (text, second) in pairs[: len(QUERIED)] and is_relevance(label, rows):
        options, by_query = {"pair": second, "kind": "relevance"}, {"by": "group", "column": "text"}  # whole queries
        return Recognised(certainty, renamed(text=text, label=label), options, split=by_query)
    if text is None:
        others = [column for column in columns if column != label]
        text = first_of(TEXTS, others) or (others[0] if len(others) == 1 else _longest(others, rows))
    if text is None or not all(isinstance(row[text], str) for row in rows if row.get(text) is not None):
        return None
    options = {"pair": second} if second else {}
    kind, note = kind_option(label, rows), ""
    if second and kind and label.lower() in SCORES:
        certainty = min(certainty, 2)  # two texts and how alike they are: for vectors first
    if guessed and set(columns) - {text, second, label}:
        note = f"{label!r} is taken for the label, as its values repeat. {_ANOTHER}"
    note = f"{note} {_may_be_grades(label, kind, rows)}".strip()
    return Recognised(certainty, renamed(text=text, label=label), options | kind, note=note)


def is_relevance(label: str, rows: Sequence[Example]) -> bool:
    """Return whether labels are 1 and 0, or true and false."""
    return all(
        as_number(int(x) if isinstance(x, bool) else x) in (0, 1) for row in rows if (x := row.get(label)) is not None
    )


def recognise_images(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise an image, as a path or bytes, with a label."""
    image, label = first_of(IMAGES, columns), label_of(columns, rows)
    if image is None or label is None or not all(_is_image(row.get(image)) for row in rows if row.get(image)):
        return None
    kind = kind_option(label, rows)
    return Recognised(3, renamed(image=image, label=label), kind, note=_may_be_grades(label, kind, rows))


def label_of(columns: Sequence[str], rows: Sequence[Example]) -> str | None:
    """Return the column of labels: by its name, and with short or repeated values."""
    # A target beside a source is a text that it becomes.
    names = (name for name in LABELS if name != "target" or not first_of(["source"], columns))
    named = (column for name in names if (column := first_of([name], columns)))
    return next((column for column in named if _are_labels(column, rows)), None)


def _are_labels(column: str, rows: Sequence[Example]) -> bool:
    """Return whether a column holds numbers, or short texts that repeat."""
    values = [value for row in rows if (value := row.get(column)) is not None]
    if not values or any(isinstance(value, Mapping) for value in values):
        return False
    texts = [value for value in values if isinstance(value, str)]
    few = all(_is_number(value) for value in values) or _repeat(texts) or len(texts) < 10
    return few and all(len(value) <= LONGEST_LABEL for value in texts)


def _candidates(columns: Sequence[str], rows: Sequence[Example]) -> dict[str, str]:
    """Return the columns, of any name, that may be the label beside longer texts, {name: separator of labels}.

    They hold a few short repeated values, or lists of them. Numbers with fractions also count if there is a text
    column.
    """
    classes, measured, text = dict[str, str](), dict[str, str](), first_of(TEXTS, columns)
    for column in columns:
        values = [value for row in rows if (value := row.get(column)) is not None]
        plain = all((isinstance(value, str) and len(value) <= LONGEST_LABEL) or _is_number(value) for value in values)
        # The number of a document or an author is what a row belongs to.
        numbered = column.lower().endswith("id") and all(_is_number(value) for value in values)
        if text not in (None, column) and plain and (separator := _separator(values)):
            classes[column] = separator
        elif plain and not numbered and 2 <= len(set(values)) <= min(MOST_CLASSES, len(values) / ROWS_AN_ANSWER):
            classes[column] = ""
        elif kind_option(column, rows) and any(
            not float(number).is_integer() for number in map(as_number, values) if number
        ):
            measured[column] = ""
    others = [column for column in columns if column not in classes]
    has_one_number = len(measured) == 1 and text is not None and len(columns) == 2
    return classes | measured if (classes and _longest(others, rows)) or has_one_number else {}


def _separator(values: Sequence[Any]) -> str:
    """Return the separator of cells that hold lists of labels; "" if they do not.

    Labels of lists occur in different cells, and some alone: "London, UK" is no list.
    """
    cells = [value for value in values if isinstance(value, str)]
    for separator in SEPARATORS if len(cells) == len(values) else ():
        parts = [part.strip() for cell in cells for part in cell.split(separator) if part.strip()]
        places = defaultdict[str, set[str]](set)
        for cell in set(cells):
            for part in filter(None, map(str.strip, cell.split(separator))):
                places[part].add(cell)
        dated = separator == "," and 2 * sum(bool(_NUMBER.search(part)) for part in places) >= len(places)
        often = 2 * sum(len(cells_with) > 1 for cells_with in places.values()) > len(places)
        occurs_alone = any(cell.strip() in places for cell in cells)
        several = sum(separator in cell for cell in cells) >= len(cells) / 4
        few = len(places) <= min(MOST_CLASSES, len(parts) / ROWS_AN_ANSWER)
        if several and few and often and occurs_alone and not dated:
            return separator
    return ""


def _several_labels(label: str, separator: str, columns: Sequence[str]) -> Recognised:
    note = f"{label!r} is taken for lists of labels with {separator!r} between them, as their parts repeat. {_ANOTHER}"
    kind = {"kind": "multi", "separator": separator}
    return Recognised(2, renamed(text=str(first_of(TEXTS, columns)), label=label), kind, note=note)


def _in_doubt(candidates: Iterable[str], columns: Sequence[str], rows: Sequence[Example]) -> Recognised:
    """Recognise data in which several columns may be the label."""
    others = [column for column in columns if column not in candidates]
    text = first_of(TEXTS, others) or _longest(others, rows) or "text"
    note = f"{' and '.join(map(repr, candidates))} may each be the label of task text-classification: name one in "
    note += "data.columns (label: …)."
    return Recognised(0, renamed(text=text), note=note)


def _longest(columns: Sequence[str], rows: Sequence[Example]) -> str | None:
    """Return the column with the longest texts that mostly differ and are longer than names; None if there is none."""
    lengths = {}
    for column in columns:
        values = [value for row in rows if (value := row.get(column)) is not None]
        if values and all(isinstance(value, str) for value in values) and len(set(values)) > len(values) / 2:
            lengths[column] = sum(map(len, values)) / len(values)
    best = max(lengths, key=lengths.__getitem__, default=None)
    return best if best is not None and any(" " in row[best].strip() for row in rows if row.get(best)) else None


def kind_option(label: str, rows: Sequence[Example]) -> dict[str, str]:
    """Return {"kind": "regression"} if labels are numbers but not classes: with fractions, or rarely equal."""
    values = [value for row in rows if (value := row.get(label)) is not None]
    if not all(_is_number(value) for value in values):
        return {}
    fractional = any(with_point(value) or not float(value).is_integer() for value in values)
    return {"kind": "regression"} if fractional or (len(values) >= LEAST_VALUES and not _repeat(values)) else {}


def _may_be_grades(label: str, kind: Mapping[str, str], rows: Sequence[Example]) -> str:
    """Return how to learn labels as numbers, if they become classes but are whole and in a short range."""
    values = [as_number(value) for row in rows if (value := row.get(label)) is not None]
    grades = {int(value) for value in values if value is not None and value.is_integer()}
    if kind or None in values or len(grades) < LEAST_GRADES or max(grades) - min(grades) > MOST_GRADES:
        return ""
    return (
        f"{label!r} holds whole numbers, which become classes. If they are grades, set "
        "task.kind to regression: then an answer that is off by one is less wrong than one that is off by three."
    )


def _is_number(value: Any) -> bool:
    """Return whether a label is a number, also with a decimal comma; the task then says how to write it."""
    return as_number(value) is not None or bool(with_point(value))


def _repeat(values: Sequence[Any]) -> bool:
    """Return whether most values occur several times."""
    return len(set(values)) <= max(1, len(values) / 2)


def _is_image(value: Any) -> bool:
    place = value.get("path") or "" if isinstance(value, Mapping) else value
    holds = isinstance(value, Mapping) and value.get("bytes") is not None
    return holds or (isinstance(place, str) and place.lower().endswith(IMAGE_SUFFIXES))
