"""The decompressed size of an Arrow message, read only from its header.

The header is a flatbuffer, `Message` in Arrow's Message.fbs, which pyarrow does not expose.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER = 2
_RECORD_BATCH, _DICTIONARY_BATCH = "record batch", "dictionary"
_DATA = 1
"""The field of a dictionary's header with its record batch."""
_BUFFERS, _COMPRESSION = 2, 3
_LENGTH = struct.Struct("<q")


def unfolded_bytes(message: pa.Message) -> int:
    """Return the bytes of a message's buffers; the first eight bytes of a compressed buffer are its size."""
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
