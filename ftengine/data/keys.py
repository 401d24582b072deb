"""Columns that decide on which side a row lies: groups and times."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.data.material import to_json
from ftengine.data.read import Rows
from ftengine.errors import DataError, did_you_mean


def _require(rows: Rows, column: str) -> None:
    if column not in rows.columns:
        raise DataError(
            f"{rows.source} has no column {column!r} (recipe key data.split.column). Its columns: "
            f"{', '.join(rows.columns)}." + did_you_mean(column, rows.columns)
        )


def values(rows: Rows, column: str) -> np.ndarray:
    """Return a number for each row that rows of the same value share.

    Raises:
        DataError: there is no such column, or a row has no value in it.
    """
    _require(rows, column)
    hashes = bytearray()
    for i, row in enumerate(rows):
        if row[column] is None or row[column] == "":
            raise DataError(
                f"{rows.where(i)}: no value in column {column!r}, by which data.split groups rows. Fill it."
            )
        hashes += blake2b(to_json(row[column]).encode(), digest_size=16).digest()
    return np.unique(np.frombuffer(bytes(hashes), dtype="S16"), return_inverse=True)[1]


def times(rows: Rows, column: str) -> np.ndarray:
    """Return the time of each row, as a number.

    Raises:
        DataError: there is no such column, a value is neither a number nor a date, or there are both.
    """
    _require(rows, column)
    result = np.empty(len(rows))
    kinds: dict[str, int] = {}
    for i, row in enumerate(rows):
        found = _time(row[column])
        if found is None:
            raise DataError(
                f"{rows.where(i)}: {str(row[column])[:60]!r} in column {column!r} is no time; data.split.by: time "
                "takes numbers, or dates as in 2024-05-31 or 2024-05-31T18:00:00+02:00."
            )
        result[i], kind = found
        kinds.setdefault(kind, i)
        if len(kinds) > 1:
            (one, first), (other, second) = kinds.items()
            raise DataError(
                f"column {column!r} mixes {one}s ({rows.where(first)}) with {other}s ({rows.where(second)}), which "
                "have no order. Write all in one way."
            )
    return result


def _time(value: Any) -> tuple[float, str] | None:
    """Return a value as (number, "number") or (seconds since 1970, "date"); a date without a zone is in UTC."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
        return (number, "number") if math.isfinite(number) else None
    except (TypeError, ValueError):
        pass
    text = str(value).strip()
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp(), "date"
