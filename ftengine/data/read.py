"""Rows of the user's data: read once into a memory-mapped Arrow file, then handed out by number.

A row of a text format is kept as its JSON text beside its line. So a column may change its type, appear
late, or hold nested messages of any shape, and every row comes back exactly as it was written; Parquet
files and data sets of the hub keep the types they have.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ftengine.api import FOLLOWING, PART, place_of
from ftengine.data.cache import BATCH_ROWS, LINE, ROW, SHOWN_SKIPS, Reading, check_free
from ftengine.data.cache_folder import FACTS, ROWS
from ftengine.data.readers import accepting, choose_reader, data_is, suffixes
from ftengine.errors import DataError, column_names, did_you_mean, near_file
from ftengine.plugins.registry import AUTO, Registry
from ftengine.run.records import Skipped

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

BATCH_FILES = 16
"""Rows read at one time where they may hold whole files (images)."""

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w\[\]:%+-]+))?")
"""owner/name, owner/name:split, owner/name/config or owner/name/config:split; the split is "train" by default."""


NO_SKIPS = Skipped(count=0, first=())


@dataclass(frozen=True)
class DataRows:
    """Examples by number, without holding them in memory.

    Args:
        dataset: the memory-mapped rows, with the hidden column that `where` reads.
        source: what the recipe calls them.
        names: for each column of a row, its name in the file.
        skipped: malformed rows that were left out when the source was read, the first `SHOWN_SKIPS` with reasons.
        folder: what paths in rows are relative to; None for a data set of the hub.
        paths: columns that hold paths, which are handed out relative to the working directory.
        note, hint, separator: what the reader says of the file; see `Reader.describe`.
        parts: (rows,) which of a row's examples each is (`Task.parts`), -1 where the row makes one; None where all do.
        numbers: (rows,) where these rows were before such rows were repeated; None where none is.
        following: what each row has under `FOLLOWING`, itself where there is none; None where tasks do not ask for it.
    """

    dataset: Dataset
    source: str
    names: Mapping[str, str]
    skipped: Skipped = NO_SKIPS
    folder: Path | None = None
    paths: frozenset[str] = frozenset()
    note: str = ""
    hint: str = ""
    separator: str = ""
    parts: np.ndarray | None = None
    numbers: np.ndarray | None = None
    following: DataRows | None = None

    @property
    def columns(self) -> list[str]:
        return list(self.names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row with every column of the file; what the row does not have is None."""
        return self._row(self.dataset[int(index)]) | self._beside(int(index))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number = 0
        for batch in self.dataset.iter(BATCH_FILES if self.paths else BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield self._row(dict(zip(batch, values, strict=True))) | self._beside(number)
                number += 1

    def _beside(self, index: int) -> dict[str, Any]:
        """Return what a row has beside its columns."""
        part = {} if self.parts is None or self.parts[index] < 0 else {PART: int(self.parts[index])}
        return part if self.following is None else {**part, FOLLOWING: self.following[index]}

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
        return row | {name: self._found(row[name]) for name in self.paths & row.keys()}

    @cached_property
    def _lines(self) -> np.ndarray:
        """The column of places; `dataset[LINE]` would copy what the data set says of its columns at each access."""
        return self.dataset.select_columns(LINE).with_format("numpy")[:][LINE]

    @cached_property
    def _blank(self) -> dict[str, None]:
        return dict.fromkeys(self.names)

    @cached_property
    def _moved(self) -> dict[str, str]:
        """Columns that have another name in the file, by their names."""
        return {name: column for name, column in self.names.items() if name != column}

    @cached_property
    def _categories(self) -> dict[str, Any]:
        """Columns whose numbers stand for names that the data set brings."""
        from datasets import ClassLabel

        features = {name: getattr(feature, "feature", feature) for name, feature in self.dataset.features.items()}
        return {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}

    def _found(self, value: Any) -> Any:
        """Return a path, alone or as {"path": …}, as seen from the working directory."""
        if self.folder is None:
            return value
        if isinstance(value, dict) and value.get("path") and value.get("bytes") is None:
            return {**value, "path": str(self.folder / value["path"])}
        return str(self.folder / value) if isinstance(value, str) and value else value

    def select(self, indices: Sequence[int] | np.ndarray) -> DataRows:
        """Return some of the rows, in the order asked for; `where` still gives their places."""
        parts, numbers = (None if one is None else one[list(indices)] for one in (self.parts, self.numbers))
        following = None if self.following is None else self.following.select(indices)
        dataset = self.dataset.select(indices)
        return replace(self, dataset=dataset, parts=parts, numbers=numbers, following=following)

    def in_parts(self, counts: np.ndarray) -> DataRows:
        """Return each row as often as it makes examples, told apart by `PART`; itself where each makes one."""
        import numpy as np

        if (counts == 1).all():
            return self
        numbers = np.repeat(np.arange(len(self)), counts)
        parts = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
        parts[np.repeat(counts, counts) == 1] = -1
        following = None if self.following is None else self.following.select(numbers)
        return replace(self, dataset=self.dataset.select(numbers), parts=parts, numbers=numbers, following=following)

    def before(self, indices: np.ndarray) -> np.ndarray:
        """Return the numbers that rows had before rows were repeated."""
        return indices if self.numbers is None else self.numbers[indices]

    def without(self, reasons: Mapping[str, str]) -> DataRows:
        """Return the rows but for those at some places (from `where`), each with the reason why it is skipped."""
        places = [self.where(i) for i in range(len(self))]
        kept = self.select([i for i, place in enumerate(places) if place not in reasons])
        first = (*self.skipped.first, *(reasons[place] for place in places if place in reasons))
        count = self.skipped.count + len(self) - len(kept)
        return replace(kept, skipped=Skipped(count=count, first=first[:SHOWN_SKIPS]))

    def where(self, index: int) -> str:
        """Return the place of a row: "support.jsonl:12", or "data.parquet row 12" where there are no lines.

        A row of a list is at its element, from 0: "data.json[11]". A row of a folder is at the path of its image.
        """
        place = self._lines[int(index)]
        return place_of(self.source, place) if isinstance(place, str) else f"{self.source} row {place}"


def read_rows(
    source: str,
    *,
    registry: Registry | None = None,
    reader: Mapping[str, Any] = MappingProxyType({"name": AUTO}),
    on_error: str = "fail",
    columns: Mapping[str, str] | None = None,
    partial: bool = False,
    paths: Iterable[str] = (),
) -> DataRows:
    """Read a file, a folder, another source that a reader accepts, or a data set of the hub.

    A file is read once and kept in `$FTENGINE_CACHE/data` (by default `~/.cache/ftengine/data`) under a hash of its
    content and of its reader.

    Args:
        source: a path or an address, or a data set of the hub (see `HUB_ID`). Categories with names, as of the hub's
            data sets, are handed out by name.
        reader: which one of the registry's (by default those that are installed), as the recipe writes it.
        on_error: "fail" raises at the first malformed row, "skip" leaves such rows out and counts them.
        columns: renames columns, {new name: name in the file}.
        partial: leave out what the file does not suit: renames of columns that it does not have, as of labels in data
            to predict, and a named reader that does not accept it.
        paths: columns that hold paths, relative to the source's folder.

    Raises:
        DataError: the source or a renamed column is missing, or it is of another format, malformed or without rows.
    """
    registry = Registry() if registry is None else registry
    path = Path(source).expanduser()
    folder = None if not path.exists() else path if path.is_dir() else path.parent
    reading = _reading(source, registry, reader, on_error, partial)
    rows = _read_hub(source, _hub_id(source, path, registry), registry) if reading is None else _read(reading)
    wanted = {new: old for new, old in (columns or {}).items() if old in rows.columns or not partial}
    names, dataset = _renamed(rows, wanted), _undecoded(rows.dataset)
    return replace(rows, dataset=dataset, names=names, folder=folder, paths=frozenset(paths))


def _reading(
    source: str, registry: Registry, reader: Mapping[str, Any], on_error: str, partial: bool = False
) -> Reading | None:
    """Return how a source is read; None for a data set of the hub (arguments and errors as of `read_rows`)."""
    path = Path(source).expanduser()
    if not path.exists():
        accepted = accepting(source, registry, reader)
        return None if accepted is None else Reading(source, source, accepted, on_error)
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"{source} is a pipe or a device, which may never end. Write its data to a file and name that.")
    make = choose_reader(str(path), registry, reader, shown=source, lenient=partial)
    return Reading(source, str(path), make, on_error)


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a source, and what is known of all of it: `count` rows, and as `DataRows` has it."""

    rows: list[dict[str, Any]]
    count: int
    columns: list[str]
    skipped: Skipped
    note: str
    hint: str


def first_rows(source: str, most: int, registry: Registry) -> FirstRows:
    """Return at most so many rows of a source; malformed ones are left out (DataError: as of `read_rows`).

    Rows of text formats are read without `datasets`, which takes longer to import than a small file to read.
    """
    import pyarrow as pa

    reading = _reading(source, registry, {"name": AUTO}, "skip")
    if reading is not None and os.path.isfile(reading.path):
        entry, facts = _cached(reading)
        with pa.memory_map(str(entry / ROWS)) as file:
            table = pa.ipc.open_stream(file).read_all()
        if ROW in table.column_names:
            blank, texts = dict.fromkeys(facts["columns"]), table[ROW].slice(0, most).to_pylist()
            first, of_reader = [blank | json.loads(text) for text in texts], (facts["note"], facts["hint"])
            return FirstRows(first, len(table), facts["columns"], _skipped(source, facts), *of_reader)
    rows = read_rows(source, registry=registry, on_error="skip")
    return FirstRows(list(islice(rows, most)), len(rows), rows.columns, rows.skipped, rows.note, rows.hint)


def is_there(source: str, registry: Registry) -> bool:
    """Say whether a file or folder is there; what is none may be what a reader fetches or the hub has (DataError)."""
    path = Path(source).expanduser()
    if not path.exists() and accepting(source, registry, {"name": AUTO}) is None:
        _hub_id(source, path, registry)
    return path.exists()


def _hub_id(source: str, path: Path, registry: Registry) -> re.Match[str]:
    """Return the parts of a data set's id, of a source that is not there (DataError: it is a path)."""
    hub, is_path = HUB_ID.fullmatch(source), path.parent.is_dir() or path.name.lower().endswith(suffixes(registry))
    if hub is None or is_path:
        raise DataError(_missing(source, path, registry))
    return hub


def _missing(source: str, path: Path, registry: Registry) -> str:
    allowed = f"{data_is(registry)}.{registry.blocked()}"
    if not path.parent.is_dir():
        return f"no data file {source!r}: there is no folder {str(path.parent)!r} in {os.getcwd()}. {allowed}"
    ends = suffixes(registry)
    there = sorted(file.name for file in path.parent.iterdir() if file.name.lower().endswith(ends) or file.is_dir())
    near = near_file(path, there)  # a recipe, say, is no data
    return f"no data file {source!r} in {path.parent.resolve()}.{near} {allowed}"


def _renamed(rows: DataRows, wanted: Mapping[str, str]) -> dict[str, str]:
    source, columns = rows.source, rows.columns
    for name, column in wanted.items():
        if column not in columns:
            raise DataError(
                f"{source} has no column {column!r} (recipe key data.columns.{name}). "
                f"Its columns: {column_names(columns)}." + did_you_mean(column, columns) + rows.hint
            )
    kept = {column: column for column in columns if column not in wanted.values()}
    for name in kept.keys() & wanted.keys():
        raise DataError(
            f"{source} has a column {name!r} beside {wanted[name]!r}, which data.columns renames to it. "
            f"Give the other one another name as well, for example data.columns: {{other: {name}}}."
        )
    return {**kept, **wanted}


def plain(value: Any) -> str:
    """Return what JSON has no type for as text: a date as it is written, bytes as their hash."""
    return blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)


def _named(category: Any, value: Any) -> Any:
    """Return the name (or names) behind a category's number; those without a name count as missing."""
    if category is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(category, item) for item in value]
    return category.names[value] if 0 <= value < len(category.names) else None


def _undecoded(dataset: Dataset) -> Dataset:
    """Hand out images as the bytes or paths that are stored; whoever wants pixels reads them."""
    from datasets import Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def _without_nulls(value: Any) -> Any:
    """Drop keys of nested objects that are None: Arrow gives every object of a column the same keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _read(reading: Reading) -> DataRows:
    import pyarrow as pa
    from datasets import Dataset

    entry, buffer = None, pa.BufferOutputStream()
    if os.path.isfile(reading.path):
        entry, facts = _cached(reading)
    else:
        facts = reading.write(buffer)
    try:
        if entry is not None:
            dataset = Dataset.from_file(str(entry / ROWS))
        else:
            dataset = Dataset(pa.ipc.open_stream(buffer.getvalue()).read_all())
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{reading.source} has a column of a type that is not read: {error}.") from None
    of_reader = {name: facts[name] for name in ("note", "hint", "separator")}
    names = {name: name for name in facts["columns"]}
    return DataRows(dataset, reading.source, names, _skipped(reading.source, facts), **of_reader)


def _cached(reading: Reading) -> tuple[Path, dict[str, Any]]:
    """Return the cache entry of a file, and the facts in it."""
    entry = reading.cached()
    return entry, json.loads((entry / FACTS).read_text(encoding="utf-8"))


def _skipped(source: str, facts: Mapping[str, Any]) -> Skipped:
    first = tuple(f"{place_of(source, place)}: {reason}" for place, reason in facts["skipped"]["first"])
    return Skipped(count=facts["skipped"]["count"], first=first)


def _read_hub(source: str, hub: re.Match[str], registry: Registry) -> DataRows:
    import datasets
    import numpy as np

    split = hub["split"] or "train"
    try:
        # `datasets` (4.0 and later) runs no code of a data set.
        dataset = datasets.load_dataset(hub["id"], hub["config"], split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"no file {source!r}, and no data set of the hub: {reason}. {data_is(registry)}.") from error
    if not len(dataset):
        raise DataError(f"{source} holds no rows in its split {split!r}.")
    check_free(source, dataset.column_names)
    names = {name: name for name in dataset.column_names}
    return DataRows(dataset.add_column(LINE, np.arange(1, len(dataset) + 1)), source, names)
