"""A folder of data files of one kind, as one source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ftengine.api import BrokenRow, FileReader, Reader, Row, place_of
from ftengine_builtins.readers.arrow import ArrowReader, ParquetReader
from ftengine_builtins.readers.image_folder import IMAGES, visible
from ftengine_builtins.readers.json_text import JsonLinesReader, JsonReader
from ftengine_builtins.readers.tables import TableReader
from ftengine_builtins.readers.text import TextReader

if TYPE_CHECKING:
    import pyarrow as pa

KINDS: tuple[type[FileReader], ...] = (
    ArrowReader,
    JsonLinesReader,
    JsonReader,
    ParquetReader,
    TableReader,
    TextReader,
)


class DataFolderReader(Reader):
    """Folders of files of rows: all of one kind and with the same columns, read one after the other by name.

    Hidden files are skipped, and files of another kind are refused. Folders with subfolders are not accepted.
    """

    name = "data-folder"

    def accepts(self, source: str) -> bool:
        with suppress(OSError, ValueError):  # not a folder, not readable, or not a path
            entries = visible(source)
            names = [entry.name.lower() for entry in entries]
            images = any(name.endswith(IMAGES) for name in names) or any(entry.is_dir() for entry in entries)
            return any(map(kind_of, names)) and not images
        return False

    def read(self, source: str) -> Iterable[Row | BrokenRow] | pa.RecordBatchReader:
        names = [entry.name for entry in visible(source)]
        kinds = {name: kind_of(name) if os.path.isfile(os.path.join(source, name)) else None for name in names}
        for name, kind in kinds.items():
            if kind is None:
                raise BrokenRow(
                    f"/{name}", "is not a data file; a folder of data must hold only data files. Move it elsewhere"
                )
        first, kind = next(iter(kinds.items()))
        for name, other in kinds.items():
            if other is not kind:
                both = f"is read as {other.name if other else ''}, but {first} beside it as {kind.name}"
                raise BrokenRow(
                    f"/{name}", f"{both}; a folder must hold files of one kind. Put others into another folder"
                )
        if issubclass(kind, (ArrowReader, ParquetReader)):
            return _batches(source, names, kind())
        return _rows(source, names, kind())


def kind_of(name: str) -> type[FileReader] | None:
    """Return the reader of files with this suffix; None if there is none."""
    return next((kind for kind in KINDS if name.lower().endswith(kind.suffixes)), None)


def _rows(source: str, names: list[str], reader: FileReader) -> Iterator[Row | BrokenRow]:
    """Yield the rows of files, whose places begin with the file's name."""
    expected: set[str] | None = None
    for name in names:
        columns: set[str] = set()
        try:
            for row in reader.read(os.path.join(source, name)):
                place = place_of(f"/{name}", row.place)
                if isinstance(row, BrokenRow):
                    yield BrokenRow(place, row.reason, row.repair)
                else:
                    columns.update(row.values)
                    yield Row(place, row.values)
        except BrokenRow as error:
            raise BrokenRow(place_of(f"/{name}", error.place), error.reason, error.repair) from None
        expected = expected or columns
        if columns and columns != expected:
            raise _other_columns(name, sorted(columns), names[0], sorted(expected))


def _batches(source: str, names: list[str], reader: ArrowReader | ParquetReader) -> pa.RecordBatchReader:
    """Return the record batches of files, whose columns must have the same names and types."""
    import pyarrow as pa

    first = reader.read(os.path.join(source, names[0]))

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first
        for name in names[1:]:
            stream = reader.read(os.path.join(source, name))
            if not stream.schema.equals(first.schema):
                shown = ([f"{field.name} ({field.type})" for field in reader.schema] for reader in (stream, first))
                raise _other_columns(name, next(shown), names[0], next(shown))
            yield from stream

    return pa.RecordBatchReader.from_batches(first.schema, batches())


def _other_columns(name: str, columns: list[str], first: str, expected: list[str]) -> BrokenRow:
    problem = f"has columns {', '.join(columns)}, but {first} beside it has {', '.join(expected)}"
    return BrokenRow(
        f"/{name}", f"{problem}; files of one folder must have the same. Rename columns, or use separate folders"
    )
