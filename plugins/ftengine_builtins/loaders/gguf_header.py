"""The header of a GGUF file: enough to tell a whole file from a damaged one, in milliseconds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGUFValueType

from ftengine.errors import SourceError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Args:
        metadata: scalars and strings by key; of an array, its length.
        tensors: how many tensors it holds.
        size: bytes that a whole file has.
    """

    metadata: dict[str, Any]
    tensors: int
    size: int


def read_header(path: Path) -> GgufHeader:
    """Read a GGUF file's metadata and tensor table, and compare its size with what they promise.

    Raises:
        SourceError: not GGUF, an unknown version, damaged, or cut short.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise SourceError(f"{str(path)!r} is no GGUF file: it does not begin with the bytes 'GGUF'.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _parse(data, path)
    except OSError as error:
        raise SourceError(f"cannot read {str(path)!r}: {error.strerror}.") from None
    # Lengths and offsets of a damaged file point anywhere; each way of stumbling over them means the same.
    except (struct.error, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise SourceError(f"{str(path)!r} is damaged: its header cannot be read ({error}). Fetch it again.") from None
    found = path.stat().st_size
    if found < header.size:
        raise SourceError(f"{str(path)!r} is cut short: {found:,} bytes of {header.size:,}. Fetch it again.")
    return header


def _parse(data: mmap.mmap, path: Path) -> GgufHeader:
    cursor = _Cursor(data, len(MAGIC))
    version = cursor.scalar("<I")
    if version not in VERSIONS:
        raise SourceError(
            f"{str(path)!r} is GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} are read."
        )
    tensors, entries = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata = {}
    for _ in range(entries):
        key = cursor.string()
        metadata[key] = cursor.value(GGUFValueType(cursor.scalar("<I")))
    end = 0
    for _ in range(tensors):
        cursor.string()
        shape = [cursor.scalar("<Q") for _ in range(cursor.scalar("<I"))]
        block, width = GGML_QUANT_SIZES[cursor.scalar("<I")]
        end = max(end, cursor.scalar("<Q") + math.prod(shape) // block * width)
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    return GgufHeader(metadata, tensors, start + end if tensors else cursor.at)


class _Cursor:
    """Reads little-endian values one after another; a read beyond the end raises struct.error."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        self.at += length
        if self.at > len(self.data):
            raise struct.error(f"a string of {length} bytes reaches beyond the end")
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self.string()
        if kind is not GGUFValueType.ARRAY:
            return self.scalar(SCALARS[kind])
        inner, length = GGUFValueType(self.scalar("<I")), self.scalar("<Q")
        if inner is GGUFValueType.STRING:
            for _ in range(length):
                size = self.scalar("<Q")
                self.at += size
        else:
            self.at += length * struct.calcsize(SCALARS[inner])
        return length
