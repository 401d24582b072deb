"""Rows cached as memory-mapped Arrow files. The key is a hash of the file's content and of its reader.

A row that a reader yields is stored as JSON text with its place; record batches keep their types.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ftengine.api import BrokenRow, Reader, Row, place_of
from ftengine.data import check_unfolded
from ftengine.errors import DataError, PluginError, RefusedRows
from ftengine.identity import file_hash
from ftengine.identity.cache import ROWS, cache_key, entry_of, temporary_entry
from ftengine.plugins.attribution import contract_error, described, each, named
from ftengine.plugins.registry import Factory
from ftengine.text import comparable

SHOWN_SKIPS = 20
"""Skipped rows whose reasons are stored; the others are only counted."""

LINE = "__line__"
"""The hidden column with a row's place: text that follows the source's name, or the row's number."""
ROW = "__row__"
"""The hidden column of a row's JSON text."""
BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 24

Item = TypeVar("Item")


@dataclass(frozen=True)
class Reading:
    """A source and its reader; `source` is its name in the recipe, `path` what the reader opens."""

    source: str
    path: str
    make: Factory
    on_error: str

    def cached(self) -> Path:
        """Return the cache entry of a file; create it if there is none (`entry_of`).

        A reader of another distribution may depend on more than the file, such as an environment variable. Its rows
        are read again each time, into a temporary entry that is deleted when this process ends.
        """
        before = os.stat(self.path)

        def write(folder: Path) -> dict[str, Any]:
            facts, after = self.write(str(folder / ROWS)), os.stat(self.path)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise DataError(f"{self.source} changed while it was being read. Try again once nothing writes to it.")
            return facts

        description, key = f"the rows of {self.source}", self._key()
        return temporary_entry(description, write) if key is None else entry_of(key, description, write)

    def _key(self) -> str | None:
        """Return a hash of the file's content and of all that determines how it is read; None if that is unknown.

        Raises:
            DataError: the file is empty, or cannot be read.
        """
        from ftengine.run.own_code import code_of

        code = code_of([self.make.entry.cls])
        suffix = "".join(Path(self.path).suffixes[-2:]).lower()
        try:
            files = [self.path, *self._beside()]
            if not all(os.path.getsize(path) for path in files):
                raise DataError(f"{self.source} is empty (0 bytes); it must hold at least one example.")
            depends = [self.on_error, suffix, self.make.described, code, [file_hash(path) for path in files]]
        except OSError as error:
            raise DataError(f"cannot read {self.source}: {error.strerror}.") from None
        return None if code is None else cache_key("rows", depends)

    def _beside(self) -> Iterable[str]:
        try:
            return self.make().files(self.path)  # type: ignore[attr-defined]
        except BrokenRow:  # reading the file reports it
            return ()

    def write(self, target: Any) -> dict[str, Any]:
        """Write the rows as an Arrow stream to a path or a buffer; return facts about them.

        Returns:
            "columns", "skipped", and the reader's "note", "hint" and "separator".

        Raises:
            DataError: a row is broken and must not be skipped, the file cannot be read further, or there are no rows.
            PluginError: the reader yields something other than rows.
        """
        import pyarrow as pa

        reader: Reader = self.make()
        try:
            with self._readable():
                content = reader.read(self.path)
            if isinstance(content, pa.RecordBatchReader):
                facts = self._write_columns(content, target)
            else:
                facts = self._write_rows(each(reader, "read", content, (Row, BrokenRow)), target)
        except BrokenRow as error:
            after = " Nothing after it can be read; repair the file." if error.place else ""
            after = f" {error.repair}." if error.repair else after
            raise DataError(f"{error.message(self.source)}.{after}") from None
        except pa.ArrowException as error:
            raise DataError(f"{self.source} cannot be read by reader {reader.name!r}: {error}.") from None
        facts |= {"note": reader.describe(self.path), "hint": reader.hint(self.path, facts["columns"])}
        return {**facts, "separator": reader.separator(self.path)}

    def _write_rows(self, stream: Iterable[Row | BrokenRow], target: Any) -> dict[str, Any]:
        import pyarrow as pa

        columns: dict[str, None] = {}  # in order of appearance
        skipped, first = 0, list[tuple[str, str]]()

        def written() -> Iterator[tuple[str, bytes]]:
            nonlocal skipped
            for item in self._usable(stream):
                if not isinstance(item, BrokenRow):
                    row, content = item
                    columns.update(dict.fromkeys(row.values))
                    yield place_of("", row.place), content
                else:
                    skipped += 1
                    if len(first) < SHOWN_SKIPS:
                        first.append((place_of("", item.place), item.reason))

        rows = size = 0
        schema = pa.schema([(ROW, pa.string()), (LINE, pa.string())])
        with pa.ipc.new_stream(target, schema) as writer:
            for places, texts in _in_batches(written()):
                writer.write_batch(pa.record_batch([pa.array(texts, pa.string()), pa.array(places)], schema))
                rows, size = rows + len(places), size + sum(map(len, texts))
                self._check_unfolded(size)
        if not rows:
            shown = f"{place_of(self.source, first[0][0])}) as {first[0][1]}" if skipped else ""
            reason = f": all {skipped:,} were skipped, the first ({shown}" if skipped else ""
            raise DataError(f"{self.source} holds no rows{reason}. It must hold at least one example.")
        for column in columns:
            if not isinstance(column, str):
                raise contract_error(self.make(), "read", column, "rows whose columns are texts")
        check_free(self.source, list(columns))
        return {"columns": list(columns), "skipped": {"count": skipped, "first": first}}

    def _usable(self, stream: Iterable[Row | BrokenRow]) -> Iterator[tuple[Row, bytes] | BrokenRow]:
        """Yield rows with their JSON, and broken rows if they are skipped (otherwise DataError with their count)."""
        refused, repair = RefusedRows(), ""
        try:
            for row in self._guarded(stream):
                if isinstance(row, Row) and not isinstance(row.values, Mapping):
                    raise PluginError(
                        f"{named(self.make())}: read() yielded row {place_of(self.source, row.place)} with "
                        f"{described(row.values)} as values; yield a mapping of columns, or a BrokenRow."
                    )
                item = _encoded(row)
                if self.on_error == "fail" and isinstance(item, BrokenRow):
                    repair = repair or item.repair or "Repair the row, or leave such rows out with data.on_error=skip"
                    refused.add(place_of(self.source, item.place), f"{item.message(self.source)}.")
                    if refused.enough:
                        break
                elif not refused.count:
                    yield item
        except BrokenRow:  # nothing after it can be read
            if not refused.count:
                raise
        if refused.count:
            raise refused.error(f" {repair}.")

    def _write_columns(self, stream: Any, target: Any) -> dict[str, Any]:
        """Write record batches, one at a time; return their columns."""
        import pyarrow as pa

        check_free(self.source, stream.schema.names)
        # Categories become the values that they stand for, as `datasets` has no type for them.
        plain = [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in stream.schema
        ]
        schema = pa.schema(plain, stream.schema.metadata)
        done = size = 0
        with pa.ipc.new_stream(target, schema.append(pa.field(LINE, pa.int64()))) as writer:
            for batch in chain.from_iterable(map(_pieces, self._guarded(stream))):
                table = pa.Table.from_batches([batch]).cast(schema)
                size += table.nbytes
                self._check_unfolded(size)
                numbers = pa.array(range(done + 1, done + 1 + len(batch)), pa.int64())
                writer.write_table(table.append_column(LINE, numbers))
                done += len(batch)
        if not done:
            raise DataError(f"{self.source} holds no rows; it must hold at least one example.")
        return {"columns": stream.schema.names, "skipped": {"count": 0, "first": []}}

    def _check_unfolded(self, size: int) -> None:
        """Raise BrokenRow if rows of so many bytes come from a far smaller file."""
        if os.path.isfile(self.path):
            check_unfolded(self.path, size)

    def _guarded(self, items: Iterable[Item]) -> Iterator[Item]:
        with self._readable():
            yield from items

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn the system's errors about the file, or another that the reader opens, into DataError."""
        try:
            yield
        except OSError as error:
            other = f" ({error.filename!r})" if error.filename not in (None, self.path) else ""
            raise DataError(f"cannot read {self.source}: {error.strerror or error}{other}.") from None


def _encoded(item: Row | BrokenRow) -> tuple[Row, bytes] | BrokenRow:
    """Return a row and its JSON in UTF-8, or a BrokenRow with the reason."""
    if isinstance(item, BrokenRow):
        return item
    try:
        # Strict encoding, as half of a surrogate pair ("\ud83d") breaks every tokenizer later on.
        return item, _to_json(dict(item.values)).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        return BrokenRow(item.place, f"holds {half}, half of a surrogate pair, which is not a character")
    except RecursionError:
        return BrokenRow(item.place, "not valid JSON: nested too deeply")
    except TypeError as error:
        return BrokenRow(item.place, f"holds a value that JSON has no type for: {error}")


_to_json = json.JSONEncoder(ensure_ascii=False).encode


def _in_batches(rows: Iterable[tuple[str, bytes]]) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yield rows in batches of limited number and size: an Arrow batch holds at most 2 GiB of text."""
    places: list[str] = []
    texts: list[bytes] = []
    size = 0
    for place, text in rows:
        places.append(place)
        texts.append(text)
        size += len(text)
        if len(texts) == BATCH_ROWS or size >= _BATCH_BYTES:
            yield places, texts
            places, texts, size = [], [], 0
    if texts:
        yield places, texts


def _pieces(batch: Any) -> Iterator[Any]:
    """Yield a batch in pieces that stay small when categories are replaced by their values."""
    import pyarrow as pa

    width = sum(_widest(column.dictionary) for column in batch.columns if pa.types.is_dictionary(column.type))
    step = max(1, _BATCH_BYTES // width) if width else max(1, len(batch))
    for start in range(0, len(batch), step):
        yield batch.slice(start, step)


def _widest(values: Any) -> int:
    """Return an upper bound of the bytes of the largest of some values."""
    import pyarrow as pa
    from pyarrow import compute

    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(is_text(values.type) for is_text in texts):
        return compute.max(compute.binary_length(values)).as_py() or 1
    return values.nbytes if pa.types.is_nested(values.type) else 16


def check_free(source: str, columns: Sequence[str]) -> None:
    """Raise DataError if columns look alike or have a name that is reserved for ftengine."""
    names: dict[str, str] = {}
    for name in columns:
        if name in (LINE, ROW):
            raise DataError(f"{source} has a column {name!r}, which is reserved for ftengine. Rename the column.")
        key = comparable(name).strip()
        if key in names:
            raise DataError(
                f"{source} has columns {names[key]!a} and {name!a}, which look alike. Rename or remove one."
            )
        names[key] = name
