"""Columns of the data that change nothing of what a model is given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ftengine.api import Example, Task
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import DataError

LOOKED_AT = 200
"""Rows among which some with a value in the column are sought."""
TRIED = 5
"""Rows that are encoded without the column."""


def unread_columns(train: EncodedSplit, used: Collection[str] = ()) -> list[str]:
    """Return the columns without which the first training rows that have them are encoded all the same.

    Args:
        train: the training split.
        used: columns that something else than the task reads.
    """
    rows = [train.rows[int(number)] for number in train.index[:LOOKED_AT]]
    return [column for column in train.rows.columns if column not in used and not _is_read(column, rows, train)]


def unread_keys(train: EncodedSplit, used: Collection[str] = ()) -> dict[str, str]:
    """Return columns and keys of objects in lists ("messages.weight") whose values change nothing that is encoded.

    Unlike `unread_columns`, which takes a value away, other values are tried too, as a key that is read may hold what
    also goes without saying.

    Args:
        train: the training split.
        used: columns that something else than the task reads.

    Returns:
        The place of the first row that has each.
    """
    having: dict[tuple[str, ...], list[int]] = {}
    for number in map(int, train.index[:LOOKED_AT]):
        row = train.rows[number]
        for column in row.keys() - set(used):
            if row[column] is not None:
                having.setdefault((column,), []).append(number)
            entries = row[column] if isinstance(row[column], list) else []
            for key in {key for one in entries if isinstance(one, dict) for key in one if one[key] is not None}:
                having.setdefault((column, key), []).append(number)
    rows = {path: [train.rows[number] for number in numbers[:TRIED]] for path, numbers in having.items()}
    return {
        ".".join(path): train.rows.where(having[path][0])
        for path in sorted(rows)
        if not _matters(path, rows[path], train)
    }


def _matters(path: tuple[str, ...], rows: Sequence[Example], train: EncodedSplit) -> bool:
    return any(
        _seen(train.task, row, train) != _seen(train.task, _with(row, path, value), train)
        for row in rows
        for value in (None, 0, "?")
    )


def _with(row: Example, path: tuple[str, ...], value: Any) -> Example:
    """Return a row with another value in a column, or under a key of every object of a column's list."""
    column, *key = path
    if not key:
        return {**row, column: value}
    return {
        **row,
        column: [{**one, key[0]: value} if isinstance(one, dict) and key[0] in one else one for one in row[column]],
    }


def _is_read(column: str, rows: Sequence[Example], train: EncodedSplit) -> bool:
    having = [row for row in rows if row.get(column) is not None][:TRIED]
    return any(_seen(train.task, row, train) != _seen(train.task, {**row, column: None}, train) for row in having)


def _seen(task: Task, row: Example, train: EncodedSplit) -> Any:
    """Return what a task makes of a row, comparable by ==; None where it cannot read it."""
    try:
        features = task.encode(row, train.processor, max_length=train.max_length)
    except DataError:
        return None
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in features.items()}
