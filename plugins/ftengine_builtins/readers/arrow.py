"""Files of Apache Arrow and Parquet, whose columns keep their types."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ftengine.api import BrokenRow, FileReader
from ftengine.data import check_unfolded

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_MAGIC = b"ARROW1"
_HEAD = 8
"""Bytes before the first message of a file: the padded magic number."""

MOST_ROWS, LEAST_ROWS = 16_384, 64
BATCH_BYTES = 128 << 20
"""Rows of Parquet that are decompressed at once, and a limit on their bytes."""


class ParquetReader(FileReader):
    """Parquet files."""

    name = "parquet"
    suffixes = (".parquet",)

    def read(self, source: str) -> pa.RecordBatchReader:
        from pyarrow import parquet

        with _readable("Parquet"):
            content = parquet.ParquetFile(source)
            groups = [content.metadata.row_group(i) for i in range(content.num_row_groups)]
            check_unfolded(source, sum(group.total_byte_size for group in groups))
            batches = content.iter_batches(min(map(_rows_at_once, groups), default=MOST_ROWS))
            return _batches("Parquet", content.schema_arrow, batches)


class ArrowReader(FileReader):
    """Arrow files, in either of Arrow's two layouts: file or stream."""

    name = "arrow"
    suffixes = (".arrow",)

    def read(self, source: str) -> pa.RecordBatchReader:
        import pyarrow as pa

        with open(source, "rb") as file:
            is_file = file.read(len(_MAGIC)) == _MAGIC
        with _readable("Arrow"):
            check_unfolded(source, sum(map(unfolded_bytes, _messages(source, is_file))))
            content = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.OSFile(source))
            batches = map(content.get_batch, range(content.num_record_batches)) if is_file else content
            return _batches("Arrow", content.schema, batches)


def _rows_at_once(group: parquet.RowGroupMetaData) -> int:
    """Return how many rows of a row group to decompress at once.

    A repeated value is stored once, in a dictionary page, so a group may need far more bytes than it states. Each row
    is assumed to have the largest value that its dictionaries could hold.
    """
    width = group.total_byte_size / max(group.num_rows, 1)
    for column in map(group.column, range(group.num_columns)):
        if column.has_dictionary_page and column.dictionary_page_offset is not None:
            page = column.data_page_offset - column.dictionary_page_offset
            width += page * column.total_uncompressed_size / max(column.total_compressed_size, 1)
    return int(min(max(BATCH_BYTES / max(width, 1), LEAST_ROWS), MOST_ROWS))


def _messages(source: str, is_file: bool) -> Iterator[pa.Message]:
    """Yield the messages of an Arrow file without decompressing them."""
    import pyarrow as pa

    with pa.memory_map(source) as file:
        file.seek(_HEAD if is_file else 0)
        reader = pa.ipc.MessageReader.open_stream(file)
        with suppress(StopIteration):
            while True:
                yield reader.read_next_message()


def _batches(kind: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatchReader:
    import pyarrow as pa

    _require_one_of_each([field.name for field in schema], "columns")
    for field in schema:
        for _, type_ in _parts(field):  # decodes all names, which Arrow does only when they are read
            if pa.types.is_struct(type_):
                _require_one_of_each([type_.field(i).name for i in range(type_.num_fields)], f"parts of {field.name!r}")
    return pa.RecordBatchReader.from_batches(schema, _read(kind, batches))


def _require_one_of_each(names: Sequence[str], what: str) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BrokenRow("", f"has two {what} named {twice!r}; rename one")


def _read(kind: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches; damage of a file may show only here."""
    with _readable(kind):
        for batch in batches:
            batch.validate(full=True)  # Arrow does not check offsets, and wrong ones crash the process
            for field, column in zip(batch.schema, batch.columns, strict=True):
                _check_times(field, column)
            yield batch


def _check_times(field: pa.Field, column: pa.Array) -> None:
    """Refuse dates, times and zones that Python cannot represent, such as the year 20000."""
    import pyarrow as pa

    if not any(pa.types.is_temporal(kind) for _, kind in _parts(field)):
        return
    try:
        column.to_pylist()
    except (ArithmeticError, LookupError, ValueError) as error:
        reason = f"has a date or time in column {field.name!r} that Python cannot represent: {error}"
        raise BrokenRow("", reason) from None


def _parts(field: pa.Field) -> Iterator[tuple[str, pa.DataType]]:
    """Yield name and type of a field and of its nested fields."""
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    yield field.name, kind
    if pa.types.is_nested(kind):
        for i in range(kind.num_fields):
            yield from _parts(kind.field(i))


@contextmanager
def _readable(kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # Arrow raises it for invalid text
        raise BrokenRow("", f"cannot be read as {kind}: {str(error).strip().rstrip('.')}") from None


_HEADER = 2
_RECORD_BATCH, _DICTIONARY_BATCH = "record batch", "dictionary"
_DATA = 1
"""The field of a dictionary's header with its record batch."""
_BUFFERS, _COMPRESSION = 2, 3
_LENGTH = struct.Struct("<q")


def unfolded_bytes(message: pa.Message) -> int:
    """Return the decompressed bytes of a message's buffers, read only from their headers.

    The header is a flatbuffer, `Message` in Arrow's Message.fbs, which pyarrow does not expose. The first eight bytes
    of a compressed buffer are its size.
    """
    body = message.body
    if message.type not in (_RECORD_BATCH, _DICTIONARY_BATCH) or body is None:
        return 0
    head = memoryview(message.metadata)
    batch = _table(head, _unsigned(head, 0), _HEADER)
    if message.type == _DICTIONARY_BATCH:
        batch = _table(head, batch, _DATA)
    if not _field(head, batch, _COMPRESSION):
        return body.size
    at, total = _table(head, batch, _BUFFERS), 0
    for i in range(_unsigned(head, at)):
        start, length = struct.unpack_from("<qq", head, at + 4 + 16 * i)
        if length >= _LENGTH.size:
            unfolded = _LENGTH.unpack_from(memoryview(body), start)[0]
            total += length if unfolded < 0 else unfolded  # -1: this buffer is not compressed
    return total


def _table(head: memoryview, table: int, field: int) -> int:
    """Return the start of the table or vector to which a field of a table refers."""
    at = _field(head, table, field)
    return at + _unsigned(head, at)


def _field(head: memoryview, table: int, number: int) -> int:
    """Return the offset of a field of a table; 0 if the table lacks it."""
    entries = table - struct.unpack_from("<i", head, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", head, entries)[0]:
        return 0
    offset = struct.unpack_from("<H", head, entries + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _unsigned(head: memoryview, at: int) -> int:
    return struct.unpack_from("<I", head, at)[0]
