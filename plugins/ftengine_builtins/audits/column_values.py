"""Values of unread columns: which columns there are, and whether they hold ids or kinds of rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import AuditedData
from ftengine_builtins.audits.word_scores import rows_by_split

MOST_COLUMNS = 30
"""Columns that are looked at, the first."""
FEWEST_IDS = 20
"""Values of a column of ids, at least."""
MOST_OF_AN_ID = 20
"""Rows that a value has on average, up to which values are ids whatever they look like."""
LIKE_IDS = 0.9
"""Share of the values that have a digit from which they look like ids; these have rows up to their number each."""
NAMED_AS_ID = re.compile(r"(^|[_\W])(id|ids|uuid|guid|key|no|nr)$|[a-z]I[dD]$")


def unread_columns(data: AuditedData) -> list[str]:
    """Return the columns that nothing reads, without keys within them."""
    return [name for name in data.encoded.get("train", {}).get("unread", {}) if "." not in name][:MOST_COLUMNS]


def read_values(
    data: AuditedData, split: str, columns: Sequence[str], most: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of a split's rows in some columns; with `most`, of the first rows only.

    White space around texts is removed; a blank text is None.
    """
    yield from _cleaned(islice(data.splits[split].values(columns), most))


def _cleaned(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        yield tuple((value.strip() or None) if isinstance(value, str) else value for value in row)


def values_of(data: AuditedData, columns: Sequence[str], drawn: np.ndarray) -> Iterator[tuple[str, list[Any]]]:
    """Yield each column and its values in the rows with these numbers, counted over all splits."""
    values = list[tuple[Any, ...]]()
    for split, _, rows in rows_by_split(data, drawn.tolist()):
        values += _cleaned(data.splits[split].select(rows).values(columns))
    for name, of in zip(columns, zip(*values, strict=True), strict=True):
        yield name, list(of)


def first_values(data: AuditedData, columns: Sequence[str], most: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield each column and its values, without None, in the first training rows."""
    for name, of in zip(columns, zip(*read_values(data, "train", columns, most), strict=True), strict=False):
        yield name, [value for value in of if value is not None]


def are_kinds(values: Collection[Any]) -> bool:
    """Return whether values may be kinds or ids: only texts and whole numbers."""
    return bool(values) and all(isinstance(value, (str, int)) for value in values)


def are_ids(name: str, distinct: Collection[Any], rows: int) -> bool:
    """Return whether a column's values identify a patient, an author or the like, rather than a kind of rows.

    Ids have many values for the number of rows: a few rows each, or, if the column or its values look like ids, at most
    as many rows each as there are values.

    Args:
        distinct: the distinct values, without None.
        rows: number of rows that have one of them.
    """
    if len(distinct) < FEWEST_IDS or rows > len(distinct) ** 2 or not are_kinds(distinct):
        return False
    return rows <= MOST_OF_AN_ID * len(distinct) or look_like_ids(name, distinct)


def look_like_ids(name: str, distinct: Collection[Any]) -> bool:
    """Return whether a column is named as an id, or nearly all of its distinct values are texts with a digit."""
    with_digit = sum(isinstance(value, str) and any(sign.isdigit() for sign in value) for value in distinct)
    return is_named_as_id(name) or with_digit >= LIKE_IDS * len(distinct)


def is_named_as_id(name: str) -> bool:
    """Return whether a column's name marks it as an id or a number, such as `patient_id`."""
    return NAMED_AS_ID.search(name) is not None
