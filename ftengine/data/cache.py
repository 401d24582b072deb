"""Rows kept as memory-mapped Arrow files: a file is parsed once, under a hash of its content.

A row of a text format is kept as its JSON text beside its line; the columns of Parquet and Arrow files keep
their types.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from ftengine.data.parse import PARSERS, Malformed, parse, separator_of
from ftengine.errors import DataError

PARQUET, ARROW = ".parquet", ".arrow"
SUFFIXES = (*PARSERS, PARQUET, ARROW)

CACHE_VARIABLE = "FTENGINE_CACHE"
CACHE_FORMAT = 3
"""Part of every cache key; raised when the same file would be stored in another way."""

SHOWN_SKIPS = 20
"""Skipped rows whose reasons are kept; the others are only counted."""

LINE = "__line__"
"""The hidden column of a row's place."""
ROW = "__row__"
"""The hidden column of a row's JSON text."""
BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 24
_ARROW_MAGIC = b"ARROW1"


def cached(file: BinaryIO, source: str, suffix: str, on_error: str) -> Path:
    """Return the cache entry of an open file, made now if there is none.

    An entry is a folder that is written under another name and renamed, so that it is complete wherever
    it exists, and processes that make the same one at once do not disturb each other.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ftengine").expanduser() / "data"
    before = os.fstat(file.fileno())
    digest = blake2b(f"{CACHE_FORMAT} {suffix} {on_error} ".encode(), digest_size=20)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    entry = folder / digest.hexdigest()
    if entry.is_dir():
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{entry.name}-", suffix=".tmp", dir=folder) as temporary:
            part = Path(temporary, "entry")
            part.mkdir()
            write = _write_columns if suffix in (PARQUET, ARROW) else _write_text
            facts = write(file, part / "rows.arrow", source, suffix, on_error)
            (part / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise DataError(f"{source} changed while it was read. Try again when its writer is done.")
            try:
                part.rename(entry)
            except OSError:
                if not entry.is_dir():  # it is when another process was faster
                    raise
    except OSError as error:
        raise DataError(
            f"cannot keep the rows of {source} in the cache {folder}: {error.strerror or error}. "
            f"Make room there, or name another folder with {CACHE_VARIABLE}."
        ) from error
    return entry


def _write_text(file: BinaryIO, path: Path, source: str, suffix: str, on_error: str) -> dict[str, Any]:
    """Write the rows of a text file as Arrow; return its columns, what separates them and what was skipped."""
    import pyarrow as pa

    separator = separator_of(file, suffix)

    columns: dict[str, None] = {}  # in order of appearance
    skipped = 0
    first: list[tuple[str, str]] = []

    def kept() -> Iterator[tuple[int, bytes]]:
        nonlocal skipped
        for item in parse(file, suffix):
            if not isinstance(item, Malformed):
                line, names, row = item
                columns.update(dict.fromkeys(names))
                yield line, row
            elif on_error == "fail":
                raise DataError(
                    f"{source}{item.place}: {item.reason}. "
                    "Repair the row, or leave such rows out with data.on_error: skip."
                )
            else:
                skipped += 1
                if len(first) < SHOWN_SKIPS:
                    first.append((item.place, item.reason))

    rows = 0
    schema = pa.schema([(ROW, pa.string()), (LINE, pa.int64())])
    try:
        with pa.ipc.new_stream(str(path), schema) as writer:
            for lines, texts in _in_batches(kept()):
                writer.write_batch(pa.record_batch([pa.array(texts, pa.string()), pa.array(lines)], schema))
                rows += len(lines)
    except Malformed as error:
        raise DataError(
            f"{source}{error.place}: {error.reason}. Nothing after it can be read; repair the file."
        ) from None
    if not rows:
        reason = (
            f": all {skipped:,} were skipped, the first ({source}{first[0][0]}) as {first[0][1]}" if skipped else ""
        )
        raise DataError(f"{source} holds no rows{reason}. It must hold at least one example.")
    return {"columns": list(columns), "separator": separator, "skipped": {"count": skipped, "first": first}}


def _in_batches(rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[list[int], list[bytes]]]:
    """Gather rows until there are many, or until they are large: Arrow holds at most 2 GiB of text a batch."""
    lines: list[int] = []
    texts: list[bytes] = []
    size = 0
    for line, text in rows:
        lines.append(line)
        texts.append(text)
        size += len(text)
        if len(texts) == BATCH_ROWS or size >= _BATCH_BYTES:
            yield lines, texts
            lines, texts, size = [], [], 0
    if texts:
        yield lines, texts


def _write_columns(file: BinaryIO, path: Path, source: str, suffix: str, on_error: str) -> dict[str, Any]:
    """Write the rows of a Parquet or Arrow file as Arrow, a batch at a time; return its columns."""
    import pyarrow as pa

    try:
        found, batches = _parquet(file) if suffix == PARQUET else _arrow(file)
        check_free(source, found.names)
        # Categories become the values that they stand for, as `datasets` has no type for them.
        plain = [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in found
        ]
        schema = pa.schema(plain, found.metadata)
        done = 0
        with pa.ipc.new_stream(str(path), schema.append(pa.field(LINE, pa.int64()))) as writer:
            for batch in batches:
                table = pa.Table.from_batches([batch]).cast(schema)
                numbers = pa.array(range(done + 1, done + 1 + len(batch)), pa.int64())
                writer.write_table(table.append_column(LINE, numbers))
                done += len(batch)
    except pa.ArrowException as error:
        kind = "Parquet" if suffix == PARQUET else "Arrow"
        raise DataError(f"{source} is no {kind} file that can be read: {error}.") from None
    if not done:
        raise DataError(f"{source} holds no rows; it must hold at least one example.")
    return {"columns": found.names, "separator": "", "skipped": {"count": 0, "first": []}}


def _parquet(file: BinaryIO) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a Parquet file and its batches."""
    from pyarrow import parquet

    content = parquet.ParquetFile(file)
    return content.schema_arrow, content.iter_batches()


def _arrow(file: BinaryIO) -> tuple[Any, Iterator[Any]]:
    """Return the schema of an Arrow file, in either of Arrow's two layouts, and its batches."""
    import pyarrow as pa

    whole = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
    file.seek(0)
    if not whole:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    content = pa.ipc.open_file(file)
    return content.schema, (content.get_batch(i) for i in range(content.num_record_batches))


def check_free(source: str, columns: Sequence[str]) -> None:
    for name in (LINE, ROW):
        if name in columns:
            raise DataError(f"{source} has a column {name!r}; ftengine keeps this name for itself. Rename the column.")
