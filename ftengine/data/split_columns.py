"""Columns that decide on which side a row lies: groups and times."""

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
    """Return a hash for each row, of dtype S16, that rows of one value share (DataError: there is none).

    Values are read as names of labels are: without white space around them, and 7, "7" and 7.0 are one, as are values
    that look alike (`comparable`, and any white space for another).
    """
    hashes = bytearray()
    for i, name in enumerate(_names(rows, column)):
        if not name:
            raise DataError(f"{rows.where(i)}: no value in column {column!r}, by which rows are grouped. Fill it.")
        hashes += _hash(name)
    return np.frombuffer(bytes(hashes), dtype="S16")


def numbers_of(
    rows: DataRows, digests: np.ndarray, column: str | None, listener: Listener
) -> tuple[np.ndarray, np.ndarray]:
    """Return two numbers for each row that is measured: one that duplicates share, and one that all of a group share.

    Duplicates are of one group, and so are rows of one value in the column, where there is one. A row without a value
    is a group of its own, which the listener is told of. `digests` are those of `identities`.
    """
    duplicates = duplicate_numbers(digests)
    if column is None:
        return duplicates, duplicates
    hashes, alone = bytearray(), list[int]()
    for i, name in enumerate(_names(rows, column)):
        if not name:
            alone.append(i)
        hashes += _hash(name) if name else i.to_bytes(16, "big")
    if alone:
        listener.message(
            f"{len(alone):,} of {len(rows):,} rows have no value in column {column!r} (e.g. {rows.where(alone[0])}), "
            "so each of them is taken for a group"
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
"""Numbers that are likely to be times, least and greatest, by what they count."""


def times(splits: Mapping[str, DataRows], column: str) -> dict[str, np.ndarray]:
    """Return the time of each row as a number (DataError: one has none, or they have no order)."""
    result: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    for name, rows in splits.items():
        _require(rows, column)
        result[name] = np.empty(len(rows))
        for i, row in enumerate(rows):
            parsed = _time(row[column])
            if parsed is None:
                raise DataError(
                    f"{rows.where(i)}: {str(row[column])[:60]!r} in column {column!r} is not a time; data.split.by: "
                    "time takes numbers, or dates as in 2024-05-31 or 2024-05-31T18:00:00+02:00."
                )
            result[name][i], kind = parsed
            if kind not in kinds:
                kinds[kind] = f"{kind}s ({rows.where(i)})"
            if len(kinds) > 1:
                raise DataError(
                    f"column {column!r} mixes {' with '.join(kinds.values())}, which have no order. Write all in one "
                    "way."
                )
    if "number" in kinds:
        _require_one_scale(splits, result, column)
    return result


def _require_one_scale(splits: Mapping[str, DataRows], numbers: Mapping[str, np.ndarray], column: str) -> None:
    """Refuse numbers that are all likely to be times, but not all in one unit."""
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
        raise DataError(f"column {column!r} mixes {mixed}, whose numbers have no order. Write all in one unit.")


def find_overlap(
    splits: Mapping[str, DataRows], times: Mapping[str, np.ndarray], column: str, held: Iterable[str]
) -> list[dict[str, Any]]:
    """Find held-out splits that do not lie wholly later than training.

    Returns:
        For each: "split", "rows" (no later than the last of training), "begins" and "ends" (the times where it begins
        and training ends, as they are written) and "places" of the two.
    """
    overlaps = []
    last = int(np.argmax(times["train"]))
    for name in held:
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
