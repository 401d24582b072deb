"""Rows of the user's data by number; rows of a source that fits in memory are decoded and viewed once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ftengine.api import Task, View, place_of
from ftengine.data.cache import BATCH_ROWS, LINE, ROW, SHOWN_SKIPS
from ftengine.run.records import Skipped

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

BATCH_FILES = 16
"""Rows read at a time if they may hold whole files (images)."""

NO_SKIPS = Skipped(count=0, first=())

KEPT_BYTES = 64 << 20
"""Most bytes of a source whose rows are decoded once; those of a larger one are decoded in each pass."""


class DecodedRows:
    """Cached rows of a source, and the views of tasks, by row number in the source."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self._views: WeakKeyDictionary[Task, dict[int, View]] = WeakKeyDictionary()

    def views(self, task: Task) -> dict[int, View]:
        """Return the cached views of a task."""
        return self._views.setdefault(task, {})


@dataclass(frozen=True)
class DataRows:
    """Examples by number, without holding them in memory.

    Args:
        dataset: the memory-mapped rows, with the hidden column that `where` reads.
        source: their name in the recipe.
        names: for each column of a row, its name in the file.
        skipped: malformed rows that were left out when the source was read, the first `SHOWN_SKIPS` with reasons.
        folder: the folder that paths in rows are relative to; None for a data set of the hub.
        task: the task that reads the rows; `Task.in_folder` finds their files.
        note, hint, separator: from `Reader.describe`.
        parts: (rows,) the number of the example that a repeated row stands for (`Task.parts`), -1 for a row that makes
            one example; None if all do.
        numbers: (rows,) the number of each row before rows were repeated; None if none was.
        following: the following row that `Task.encode` gets with each row; None if the task does not need it.
        decoded: cache of decoded rows, shared by all selections of the source; None: the source is too large.
        origin: (rows,) each row's number in the source; None if these are all its rows in order.
        excluded: rows that `data.exclude` left out of the source.
    """

    dataset: Dataset
    source: str
    names: Mapping[str, str]
    skipped: Skipped = NO_SKIPS
    folder: Path | None = None
    task: Task | None = None
    note: str = ""
    hint: str = ""
    separator: str = ""
    parts: np.ndarray | None = None
    numbers: np.ndarray | None = None
    following: DataRows | None = None
    decoded: DecodedRows | None = None
    origin: np.ndarray | None = None
    excluded: int = 0

    @property
    def columns(self) -> list[str]:
        return list(self.names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row with every column of the file; a column that the row lacks is None."""
        return dict(self._stored(int(index)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from map(dict, self._all_stored())

    def view(self, index: int, task: Task) -> View:
        """Return a task's view of a row (`Task.view`)."""
        if self.decoded is None:
            return task.view(self[index])
        views, number = self.decoded.views(task), self._origins[int(index)]
        if number not in views:
            views[number] = task.view(self[index])
        return views[number]

    def views(self, task: Task) -> Iterator[View]:
        """Yield a task's view of each row, without holding the rows of a large source in memory."""
        if self.decoded is None:
            yield from map(task.view, self)
        else:
            yield from (self.view(index, task) for index in range(len(self)))

    def _stored(self, index: int) -> dict[str, Any]:
        """Return a row's columns; callers share the object and must not change it."""
        if self.decoded is None:
            return self._row(self.dataset[index])
        number = self._origins[index]
        if number not in self.decoded.rows:
            self.decoded.rows[number] = self._row(self.dataset[index])
        return self.decoded.rows[number]

    def _all_stored(self) -> Iterator[dict[str, Any]]:
        decoded = None if self.decoded is None else self.decoded.rows
        if decoded is not None and decoded.keys() >= set(self._origins):
            yield from map(decoded.__getitem__, self._origins)
        elif decoded is None:
            yield from self._decode()
        else:
            yield from map(decoded.setdefault, self._origins, self._decode())

    def _decode(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataset.iter(BATCH_FILES if self.file_columns else BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield self._row(dict(zip(batch, values, strict=True)))

    @cached_property
    def _origins(self) -> Sequence[int]:
        return range(len(self)) if self.origin is None else self.origin.tolist()

    def part(self, index: int) -> dict[str, int]:
        """Return the argument `part` of `Task.encode`: the number of the example; {} if the row makes only one."""
        return {} if self.parts is None or self.parts[index] < 0 else {"part": int(self.parts[index])}

    def beside(self, index: int) -> dict[str, Any]:
        """Return the further arguments of `Task.encode` for a row."""
        return self.part(index) | ({} if self.following is None else {"following": self.following[index]})

    def _row(self, stored: dict[str, Any]) -> dict[str, Any]:
        if ROW in stored:
            stored = json.loads(stored[ROW])
            moved = {name: stored.get(column) for name, column in self._moved.items()}
            for column in self._moved.values():
                stored.pop(column, None)
            row = {**self._blank, **stored, **moved}
        else:
            values = {name: _without_nulls(stored[column]) for name, column in self.names.items()}
            row = {name: _named(self._categories.get(self.names[name]), value) for name, value in values.items()}
        return row if self.task is None or self.folder is None else dict(self.task.in_folder(row, str(self.folder)))

    @property
    def file_columns(self) -> tuple[str, ...]:
        """Columns that name files."""
        return () if self.task is None else self.task.file_columns

    @cached_property
    def _lines(self) -> np.ndarray:
        """The column of places, cached because each `dataset[LINE]` copies the data set's metadata."""
        return self.dataset.select_columns(LINE).with_format("numpy")[:][LINE]

    @cached_property
    def _blank(self) -> dict[str, None]:
        return dict.fromkeys(self.names)

    @cached_property
    def _moved(self) -> dict[str, str]:
        """The names in the file of renamed columns."""
        return {name: column for name, column in self.names.items() if name != column}

    @cached_property
    def _categories(self) -> dict[str, Any]:
        """Columns of categories, whose numbers stand for names in the data set."""
        from datasets import ClassLabel

        features = {name: getattr(feature, "feature", feature) for name, feature in self.dataset.features.items()}
        return {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}

    def select(self, indices: Sequence[int] | np.ndarray) -> DataRows:
        """Return some of the rows, in the order of `indices`; `where` still gives their places."""
        import numpy as np

        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            dataset=self.dataset.select(indices),
            parts=None if self.parts is None else self.parts[chosen],
            numbers=None if self.numbers is None else self.numbers[chosen],
            following=None if self.following is None else self.following.select(indices),
            origin=chosen if self.origin is None else self.origin[chosen],
        )

    def in_parts(self, counts: np.ndarray) -> DataRows:
        """Return each row once for each of its examples, numbered by `part`; `self` if each row makes one."""
        import numpy as np

        if (counts == 1).all():
            return self
        numbers = np.repeat(np.arange(len(self)), counts)
        parts = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
        parts[np.repeat(counts, counts) == 1] = -1
        return replace(self.select(numbers), parts=parts, numbers=numbers)

    def before(self, indices: np.ndarray) -> np.ndarray:
        """Return the row numbers before rows were repeated by `in_parts`."""
        return indices if self.numbers is None else self.numbers[indices]

    def without(self, reasons: Mapping[str, str]) -> DataRows:
        """Return the rows without those at some places (from `where`), which are skipped for the given reasons."""
        places = [self.where(i) for i in range(len(self))]
        rows = self.select([i for i, place in enumerate(places) if place not in reasons])
        first = (*self.skipped.first, *(reasons[place] for place in places if place in reasons))
        count = self.skipped.count + len(self) - len(rows)
        return replace(rows, skipped=Skipped(count=count, first=first[:SHOWN_SKIPS]))

    def content_hash(self, index: int) -> str:
        """Return the SHA-256 of a row's columns, except paths, in hexadecimal."""
        row = {
            name: value for name, value in self[index].items() if name in self.names and name not in self.file_columns
        }
        return sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()

    def where(self, index: int) -> str:
        """Return the place of a row: "support.jsonl:12", or "data.parquet row 12" if the file has no lines.

        For a JSON list it has the index, from 0: "data.json[11]"; for a folder it is the path of the image.
        """
        place = self._lines[int(index)]
        return place_of(self.source, place) if isinstance(place, str) else f"{self.source} row {place}"


def _named(category: Any, value: Any) -> Any:
    """Return the name (or names) of a category's number; a number without a name counts as missing."""
    if category is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(category, item) for item in value]
    return category.names[value] if 0 <= value < len(category.names) else None


def _without_nulls(value: Any) -> Any:
    """Drop None values of nested objects: Arrow gives all objects of a column the same keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
