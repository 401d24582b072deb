"""Rows that a file lists to be left out (`data.exclude`), each with its place and a hash of its content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ftengine.data.rows import DataRows
from ftengine.errors import DataError, text_of_file


@dataclass(frozen=True)
class ExcludedRow:
    """A line of the file: where the row stands, its hash (`DataRows.content_hash`), and the line for messages."""

    place: str
    content: str
    line: str

    def matches(self, place: str) -> bool:
        """Return whether a place is this one, also where one of the two paths is from another folder."""
        return f"/{place}".endswith(f"/{self.place}") or f"/{self.place}".endswith(f"/{place}")


def without_excluded(splits: Mapping[str, DataRows], source: str) -> dict[str, DataRows]:
    """Return rows by split without those that a file lists; `DataRows.excluded` counts them.

    Args:
        source: lines of JSON, each an object with the row's "place" as messages name it and its "sha256"
            (`DataRows.content_hash`); other keys are for people.

    Raises:
        DataError: the file cannot be read, a row that it lists does not exist or has changed, or no row is left.
    """
    listed, found, changed = list(_read(source)), set[int](), dict[int, str]()
    by_end: dict[str, list[int]] = {}
    for i, row in enumerate(listed):
        by_end.setdefault(_end(row.place), []).append(i)
    chosen: dict[str, DataRows] = {}
    for name, rows in splits.items():
        leave = set[int]()
        for number in range(len(rows)):
            place = rows.where(number)
            for i in by_end.get(_end(place), ()):
                if not listed[i].matches(place):
                    continue
                if rows.content_hash(number) == listed[i].content:
                    leave.add(number)
                    found.add(i)
                else:  # it may be the row of a file of the same name in another folder
                    changed[i] = place
        keep = np.delete(np.arange(len(rows)), sorted(leave))
        if not len(keep):
            raise DataError(f"{source} (recipe key data.exclude) excludes every row of {rows.source}.")
        chosen[name] = replace(rows.select(keep), excluded=len(leave)) if leave else rows
    for i in sorted(changed.keys() - found):
        raise DataError(
            f"{listed[i].line}: {changed[i]} is not the row that was excluded: its content has changed. Mark the rows "
            "again, or remove this line."
        )
    if missing := [row for i, row in enumerate(listed) if i not in found]:
        raise DataError(
            f"{missing[0].line}: no row {missing[0].place!r} in {', '.join(rows.source for rows in splits.values())}. "
            "Places are written as in messages, such as support.jsonl:12. Correct or remove the line."
        )
    return chosen


def _end(place: str) -> str:
    return place.rsplit("/", 1)[-1]


def _read(source: str) -> Iterator[ExcludedRow]:
    try:
        text = text_of_file(Path(source).expanduser())
    except (OSError, ValueError) as error:
        raise DataError(f"{source} (recipe key data.exclude) cannot be read: {error}.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            place, digest = content["place"], content["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            place = digest = None
        if not isinstance(place, str) or not isinstance(digest, str):
            raise DataError(
                f'{source}:{number}: a line of data.exclude is {{"place": "support.jsonl:12", "sha256": "…"}}; '
                "`ftengine studio` (ftengine-studio) writes such files."
            )
        yield ExcludedRow(place, digest, f"{source}:{number}")
