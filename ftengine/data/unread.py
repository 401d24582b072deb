"""Columns of the data, and keys of messages in them, that change nothing of what a model is given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ftengine.api import Example
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import DataError

LOOKED_AT = 200
"""Rows among which some with a value are sought."""
TRIED = 5
"""Rows that are encoded with other values."""


def find_unread(train: EncodedSplit, used: Collection[str] = ()) -> dict[str, str]:
    """Return columns and keys of objects in lists ("messages.weight") whose values change nothing that is encoded.

    Each comes with the place of the first row that has it; those in `used` are read by something else than the task.
    """
    having: dict[tuple[str, ...], list[int]] = {(column,): [] for column in train.rows.columns if column not in used}
    for number in map(int, train.index[:LOOKED_AT]):
        row = train.rows[number]
        for (column,) in [path for path in having if len(path) == 1]:
            if row[column] is not None:
                having[column,].append(number)
            entries = row[column] if isinstance(row[column], list) else []
            for key in {key for one in entries if isinstance(one, dict) for key in one if one[key] is not None}:
                having.setdefault((column, key), []).append(number)
    return {
        ".".join(path): train.rows.where(numbers[0])
        for path, numbers in sorted(having.items())
        if numbers and not _matters(path, [train.rows[number] for number in numbers[:TRIED]], train)
    }


def _matters(path: tuple[str, ...], rows: Sequence[Example], train: EncodedSplit) -> bool:
    """Try other values, not only none, as a key that is read may hold what also goes without saying."""
    return any(_seen(row, train) != _seen(_with(row, path, value), train) for row in rows for value in (None, 0, "?"))


def _with(row: Example, path: tuple[str, ...], value: Any) -> Example:
    """Return a row with another value in a column, or under a key of every object of a column's list."""
    column, *keys = path
    for key in keys:
        value = [{**one, key: value} if isinstance(one, dict) and key in one else one for one in row[column]]
    return {**row, column: value}


def _seen(row: Example, train: EncodedSplit) -> Any:
    """Return what the task makes of a row, comparable by ==; None where it cannot read it."""
    try:
        features = train.task.encode(row, train.processor, max_length=train.max_length)
    except DataError:
        return None
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in features.items()}
