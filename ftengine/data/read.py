"""Reading of the user's data: once into a memory-mapped Arrow file, which then gives rows by number.

A row of a text format is stored as JSON text with its line. So a column may change its type, appear late, or hold
nested messages of any shape, and every row is restored exactly; Parquet files and data sets of the hub keep their
types.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ftengine.api import Task, place_of
from ftengine.data.cache import LINE, ROW, Reading, check_free
from ftengine.data.readers import accepting, choose_reader, data_is, suffixes
from ftengine.data.rows import KEPT_BYTES, DataRows, DecodedRows
from ftengine.errors import DataError, column_names, did_you_mean, near_file
from ftengine.identity.cache import FACTS, ROWS
from ftengine.plugins.registry import AUTO, Registry
from ftengine.run.records import Skipped

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w\[\]:%+-]+))?")
"""owner/name, owner/name:split, owner/name/config or owner/name/config:split; the split is "train" by default."""


def read_rows(
    source: str,
    *,
    registry: Registry | None = None,
    reader: Mapping[str, Any] = MappingProxyType({"name": AUTO}),
    on_error: str = "fail",
    columns: Mapping[str, str] | None = None,
    partial: bool = False,
    task: Task | None = None,
) -> DataRows:
    """Read a file, a folder, another source that a reader accepts, or a data set of the hub.

    A file is read once and cached in `$FTENGINE_CACHE/data` (by default `~/.cache/ftengine/data`) under a hash of its
    content and of its reader.

    Args:
        source: a path or an address, or a data set of the hub (see `HUB_ID`). Categories are given by name.
        reader: the reader as in a recipe; `registry` has the readers (by default those that are installed).
        on_error: "fail" raises for malformed rows, "skip" leaves them out and counts them.
        columns: renames columns, {new name: name in the file}.
        partial: ignore renames of columns that the file lacks (such as labels in data to predict), and a named reader
            that does not accept it.
        task: the task that reads the rows; it finds the files that they name (`Task.in_folder`).

    Raises:
        DataError: the source or a renamed column is missing, or the source has another format, is malformed or empty.
    """
    registry = Registry() if registry is None else registry
    path = Path(source).expanduser()
    folder = None if not path.exists() else path if path.is_dir() else path.parent
    reading = _reading(source, registry, reader, on_error, partial)
    rows = _read_hub(source, _hub_id(source, path, registry), registry) if reading is None else _read(reading)
    renames = {new: old for new, old in (columns or {}).items() if old in rows.columns or not partial}
    names, dataset = _renamed(rows, renames), _undecoded(rows.dataset)
    decoded = DecodedRows() if dataset.data.nbytes <= KEPT_BYTES else None
    return replace(rows, dataset=dataset, names=names, folder=folder, task=task, decoded=decoded)


def _reading(
    source: str, registry: Registry, reader: Mapping[str, Any], on_error: str, partial: bool = False
) -> Reading | None:
    """Return how to read a source; None for a data set of the hub (arguments and errors as in `read_rows`)."""
    path = Path(source).expanduser()
    if not path.exists():
        accepted = accepting(source, registry, reader)
        return None if accepted is None else Reading(source, source, accepted, on_error)
    if not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{source} is a pipe or a device, which may never end. Write its data to a file and use the file."
        )
    make = choose_reader(str(path), registry, reader, shown=source, lenient=partial)
    return Reading(source, str(path), make, on_error)


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a source, and facts about it: `count` is its number of rows; the others as in `DataRows`."""

    rows: list[dict[str, Any]]
    count: int
    columns: list[str]
    skipped: Skipped
    note: str
    hint: str


def first_rows(source: str, most: int, registry: Registry) -> FirstRows:
    """Return at most `most` rows of a source, without malformed ones (DataError: as in `read_rows`).

    Text formats are read without `datasets`, because importing it takes longer than reading a small file.
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
    """Return whether a source is a file or folder (DataError: it is not, and neither reader nor hub may have it)."""
    path = Path(source).expanduser()
    if not path.exists() and accepting(source, registry, {"name": AUTO}) is None:
        _hub_id(source, path, registry)
    return path.exists()


def _hub_id(source: str, path: Path, registry: Registry) -> re.Match[str]:
    """Return the parts of a hub data set's id, for a source that is not a file (DataError: it looks like a path)."""
    hub, is_path = HUB_ID.fullmatch(source), path.parent.is_dir() or path.name.lower().endswith(suffixes(registry))
    if hub is None or is_path:
        raise DataError(_missing(source, path, registry))
    return hub


def _missing(source: str, path: Path, registry: Registry) -> str:
    allowed = f"{data_is(registry)}.{registry.blocked()}"
    if not path.parent.is_dir():
        return f"no data file {source!r}: there is no folder {str(path.parent)!r} in {os.getcwd()}. {allowed}"
    ends = suffixes(registry)
    neighbours = sorted(
        file.name for file in path.parent.iterdir() if file.name.lower().endswith(ends) or file.is_dir()
    )
    near = near_file(path, neighbours)  # only data files: not a recipe, for example
    return f"no data file {source!r} in {path.parent.resolve()}.{near} {allowed}"


def _renamed(rows: DataRows, renames: Mapping[str, str]) -> dict[str, str]:
    source, columns = rows.source, rows.columns
    for name, column in renames.items():
        if column not in columns:
            raise DataError(
                f"{source} has no column {column!r} (recipe key data.columns.{name}). "
                f"Its columns: {column_names(columns)}." + did_you_mean(column, columns) + rows.hint
            )
    unrenamed = {column: column for column in columns if column not in renames.values()}
    for name in unrenamed.keys() & renames.keys():
        raise DataError(
            f"{source} has a column {name!r} beside {renames[name]!r}, which data.columns renames to it. "
            f"Rename the other column too, for example data.columns: {{other: {name}}}."
        )
    return {**unrenamed, **renames}


def plain(value: Any) -> str:
    """Return a value that JSON has no type for as text: a date as written, bytes as their hash."""
    return blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)


def _undecoded(dataset: Dataset) -> Dataset:
    """Return the data set with images and audio as stored bytes or paths."""
    from datasets import Audio, Image

    for name, feature in dataset.features.items():
        if isinstance(feature, (Audio, Image)):
            stored = Audio(decode=False) if isinstance(feature, Audio) else Image(decode=False)
            dataset = dataset.cast_column(name, stored)
    return dataset


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
        raise DataError(f"{reading.source} has a column whose type is not supported: {error}.") from None
    of_reader = {name: facts[name] for name in ("note", "hint", "separator")}
    names = {name: name for name in facts["columns"]}
    return DataRows(dataset, reading.source, names, _skipped(reading.source, facts), **of_reader)


def _cached(reading: Reading) -> tuple[Path, dict[str, Any]]:
    """Return the cache entry of a file and its facts."""
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
        # `datasets` 4.0 and later does not run code of a data set.
        dataset = datasets.load_dataset(hub["id"], hub["config"], split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"no file {source!r}, and no data set of the hub: {reason}. {data_is(registry)}.") from error
    if not len(dataset):
        raise DataError(f"{source} holds no rows in its split {split!r}.")
    check_free(source, dataset.column_names)
    names = {name: name for name in dataset.column_names}
    return DataRows(dataset.add_column(LINE, np.arange(1, len(dataset) + 1)), source, names)
