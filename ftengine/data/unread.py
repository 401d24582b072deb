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
