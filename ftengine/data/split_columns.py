"""Columns that determine the split of a row: groups and times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import Listener
from ftengine.data.row_hashes import comparable_json, connected, duplicate_numbers
from ftengine.data.rows import DataRows
from ftengine.errors import DataError, column_names, did_you_mean
from ftengine.text import comparable


def _require(rows: DataRows, column: str) -> None:
    if column not in rows.columns:
        raise DataError(
            f"{rows.source} has no column {column!r} (recipe key data.split.column or data.group). Its columns: "
            f"{column_names(rows.columns)}." + did_you_mean(column, rows.columns)
        )


def values(rows: DataRows, column: str) -> np.ndarray:
    """Return (rows,) hashes of the values in a column, of dtype S16 (DataError: a row has no value).

    As with names of labels, white space around values is ignored, any white space inside equals any other, 7, "7" and
    7.0 are equal, and so are values that look alike (`comparable`).
    """
    hashes = bytearray()
    for i, name in enumerate(_names(rows, column)):
        if not name:
            raise DataError(f"{rows.where(i)}: column {column!r}, which groups rows, has no value. Fill it.")
        hashes += _hash(name)
    return np.frombuffer(bytes(hashes), dtype="S16")


def numbers_of(
    rows: DataRows, digests: np.ndarray, column: str | None, listener: Listener
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows,) numbers that are equal for duplicates, and (rows,) numbers that are equal within a group.

    Duplicates are in one group, and so are rows with the same value in `column`, if it is given. A row without a value
    is a group of its own; the listener gets a message about it. `digests` come from `identities`.
    """
    duplicates = duplicate_numbers(digests)
    if column is None:
        return duplicates, duplicates
    hashes, ungrouped = bytearray(), list[int]()
    for i, name in enumerate(_names(rows, column)):
        if not name:
            ungrouped.append(i)
        hashes += _hash(name) if name else i.to_bytes(16, "big")
    if ungrouped:
        listener.message(
            f"{len(ungrouped):,} of {len(rows):,} rows have no value in column {column!r} "
            f"(e.g. {rows.where(ungrouped[0])}); each of them counts as a group of its own"
        )
    return duplicates, connected(duplicates, np.frombuffer(bytes(hashes), dtype="S16"))


def _names(rows: DataRows, column: str) -> Iterator[str]:
    _require(rows, column)
    return (_name(row[column]) for row in rows)


def _hash(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def _name(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value:  # a NaN
        return ""
    # pandas writes the whole numbers of a column with gaps as 7.0.
    if isinstance(value, str):
        return _WHOLE.sub(r"\1", " ".join(comparable(value).split()))
    return comparable_json(value)


_WHOLE = re.compile(r"^([+-]?\d+)\.0+$")

_SCALES = {
    "years": (1900, 2100),
    "days as in 20240531": (1900_01_01, 2100_12_31),
    "seconds since 1970": (1e8, 5e9),  # from 1973 to 2128
    "milliseconds since 1970": (1e11, 5e12),
    "microseconds since 1970": (1e14, 5e15),
    "nanoseconds since 1970": (1e17, 5e18),
}
"""The range in which numbers are likely to be times, for each unit."""


def times(splits: Mapping[str, DataRows], column: str) -> dict[str, np.ndarray]:
    """Return the time of each row as a number (DataError: a row has none, or the times cannot be ordered)."""
    result: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    for name, rows in splits.items():
        _require(rows, column)
        result[name] = np.empty(len(rows))
        for i, row in enumerate(rows):
            parsed = _time(row[column])
            if parsed is None:
                raise DataError(
                    f"{rows.where(i)}: {str(row[column])[:60]!r} in column {column!r} is not a time. data.split.by: "
                    "time takes numbers, or dates such as 2024-05-31 or 2024-05-31T18:00:00+02:00."
                )
            result[name][i], kind = parsed
            if kind not in kinds:
                kinds[kind] = f"{kind}s ({rows.where(i)})"
            if len(kinds) > 1:
                raise DataError(
                    f"column {column!r} mixes {' with '.join(kinds.values())}, which cannot be ordered. Write all "
                    "times in one format."
                )
    if "number" in kinds:
        _require_one_scale(splits, result, column)
    return result


def _require_one_scale(splits: Mapping[str, DataRows], numbers: Mapping[str, np.ndarray], column: str) -> None:
    """Raise DataError if all numbers are likely to be times, but in different units."""
    edges = [edge for low, high in _SCALES.values() for edge in (low, np.nextafter(high, np.inf))]
    places: dict[int, str] = {}
    for name, rows in splits.items():
        scale = np.searchsorted(edges, numbers[name], side="right")
        if not (scale % 2).all():  # something else, such as a counter
            return
        for at, first in zip(*np.unique(scale, return_index=True), strict=True):
            places.setdefault(int(at), rows.where(int(first)))
    if len(places) > 1:
        units = list(_SCALES)
        mixed = " with ".join(f"{units[at // 2]} ({place})" for at, place in list(places.items())[:2])
        raise DataError(f"column {column!r} mixes {mixed}. Write all times in one unit.")


def find_overlap(
    splits: Mapping[str, DataRows], times: Mapping[str, np.ndarray], column: str, held_out: Iterable[str]
) -> list[dict[str, Any]]:
    """Find held-out splits with rows that are not later than all training rows.

    Returns:
        For each: "split", "rows" (how many are no later than the last training row), "begins" and "ends" (the time of
        its first row and of the last training row, as written) and the "places" of these two rows.
    """
    overlaps = []
    last = int(np.argmax(times["train"]))
    for name in held_out:
        first = int(np.argmin(times[name]))
        if early := int((times[name] <= times["train"][last]).sum()):
            ends = ((name, first), ("train", last))
            begin, end = (str(splits[part][row][column])[:60] for part, row in ends)
            places = [splits[part].where(row) for part, row in ends]
            overlaps.append({"split": name, "rows": early, "begins": begin, "ends": end, "places": places})
    return overlaps


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
