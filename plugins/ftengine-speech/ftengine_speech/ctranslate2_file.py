"""Files of CTranslate2: variables by name, mapped from disk. Nothing in them is executed.

Layout (ctranslate2/specs/model_spec.py, file version 6): u32 version, text name of the spec, u32 revision, u32 number
of variables; each has a text name, u8 rank, u32 dimensions, u8 type, u32 bytes, the values; at last the aliases. A text
is a u16 length with its terminating zero.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ftengine.errors import SourceError

VERSION, SPEC, REVISION = 6, "WhisperSpec", 3
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, np.uint16)
"""By number; the last is bfloat16, read as bits."""
BFLOAT16 = 5
MOST_RANK, MOST_VARIABLES = 4, 100_000


class Variables(dict[str, np.ndarray]):
    """A file's variables by name; numbers of one byte are scaled back by those beside them when they are taken."""

    def weight(self, name: str) -> np.ndarray:
        """Return a variable in float32 (KeyError: there is none)."""
        value, scale = self[name], self.get(f"{name}_scale")
        if value.dtype == np.uint16:
            return (value.astype(np.uint32) << 16).view(np.float32)
        value = value.astype(np.float32)
        return value if scale is None else value / np.reshape(scale, (-1,) + (1,) * (value.ndim - 1))


def is_whisper_file(file: Path) -> bool:
    """Say whether a file begins as a Whisper model of CTranslate2 does; never raises."""
    try:
        with file.open("rb") as content:
            start = content.read(6 + len(SPEC))
    except (OSError, ValueError):
        return False
    return start[6:] == SPEC.encode() and start[:4] in (struct.pack("<I", VERSION), struct.pack("<I", VERSION - 1))


def read_variables(file: Path, source: str) -> Variables:
    """Return the variables of a Whisper model's file (SourceError: it is damaged, or of another version)."""
    try:
        with file.open("rb") as content:
            mapped = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
        return _Cursor(mapped, source).variables()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise SourceError(
            f"{file.name} of {source!r} is damaged or no model of CTranslate2: {error}. Download it again."
        ) from None


class _Cursor:
    def __init__(self, content: Any, source: str) -> None:
        self._content, self._source, self._at = content, source, 0

    def variables(self) -> Variables:
        version = self._number("<I")
        spec = self._text() if version == VERSION else ""
        revision = self._number("<I") if spec else 0
        if (version, spec, revision) != (VERSION, SPEC, REVISION):
            raise SourceError(
                f"{self._source!r} is of file version {version}, {spec or 'unknown'} {revision}; read is version "
                f"{VERSION} of {SPEC} {REVISION}. Convert the model again with a CTranslate2 of version 3 or 4."
            )
        found = Variables()
        for _ in range(self._count(MOST_VARIABLES)):
            name = self._text()
            shape = tuple(self._number("<I") for _ in range(self._count(MOST_RANK, "<B")))
            kind, size = self._number("<B"), self._number("<I")
            if kind >= len(TYPES) or math.prod(shape) * np.dtype(TYPES[kind]).itemsize != size:
                raise ValueError(f"variable {name[:60]!r} of shape {shape} and type {kind} takes {size} bytes")
            found[name] = np.frombuffer(self._bytes(size), TYPES[kind]).reshape(shape)
        for _ in range(self._count(MOST_VARIABLES)):
            alias, name = self._text(), self._text()
            if name not in found:
                raise ValueError(f"{alias[:60]!r} is an alias of {name[:60]!r}, which is not there")
            found[alias] = found[name]
        return found

    def _bytes(self, size: int) -> memoryview:
        start, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise ValueError(f"it ends at byte {len(self._content):,}, within a variable")
        return memoryview(self._content)[start : self._at]

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _count(self, most: int, form: str = "<I") -> int:
        count = self._number(form)
        if count > most:
            raise ValueError(f"it states {count:,} items where {most:,} are the most")
        return count

    def _text(self) -> str:
        return bytes(self._bytes(self._number("<H"))).rstrip(b"\0").decode()
