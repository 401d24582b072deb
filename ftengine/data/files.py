"""Files for readers: opening packed files, decoding lines of text, and a limit on the size of unpacked rows."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ftengine.api import BrokenRow
from ftengine.text import size, size_in

UNFOLDED_VARIABLE = "FTENGINE_UNFOLDED"
UNFOLDED_TIMES, UNFOLDED_LEAST = 100, 256 << 20
"""The limit on unpacked rows: a multiple of the file's size, and at least so many bytes. Text is rarely compressed to
less than a twentieth."""

GZIP = ".gz"
"""The ending of files packed by gzip."""


def check_unfolded(source: str, rows: int) -> None:
    """Raise BrokenRow if the rows of a file take far more bytes than the file.

    A few kilobytes of a compressed format may unpack to more than memory and disk hold. Readers call this before they
    unpack rows if the file states their size; the cache calls it while it writes rows.
    """
    packed = os.path.getsize(source)
    allowed = size_in(UNFOLDED_VARIABLE, str(max(UNFOLDED_TIMES * packed, UNFOLDED_LEAST)))
    if rows > allowed:
        raise BrokenRow(
            "",
            f"has {size(packed)}, but its rows take {size(rows)} or more; {size(allowed)} are allowed. If the "
            f"file is right, raise the limit with {UNFOLDED_VARIABLE}, for example {UNFOLDED_VARIABLE}=5GB",
        )


def encoding_of(path: str | Path) -> str:
    """Return the encoding of a text file by its byte order mark: "utf-16" (some spreadsheets) or else "utf-8-sig"."""
    with open_file(path) as file:
        beginning = file.read(4)
    wide = beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and beginning != codecs.BOM_UTF32_LE
    return "utf-16" if wide else "utf-8-sig"


def has_mark(path: str | Path) -> bool:
    """Return whether a text file begins with a byte order mark."""
    with open_file(path) as file:
        return file.read(4).startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file to read its bytes; a .gz file is unpacked while it is read, up to the limit (`check_unfolded`).

    Raises:
        BrokenRow: on reading, if a .gz file is no gzip file, is damaged, or unpacks to far more bytes than allowed.
    """
    return io.BufferedReader(_Unfolded(path), 1 << 16) if is_gzip(path) else open(path, "rb")  # type: ignore[arg-type]


def is_gzip(path: str | Path) -> bool:
    """Return whether a file's name ends in .gz."""
    return str(path).lower().endswith(GZIP)


class _Unfolded(io.RawIOBase):
    """The unpacked content of a gzip file, with a limit on its size."""

    def __init__(self, path: str | Path) -> None:
        self._path, self._file, self._bytes = str(path), gzip.GzipFile(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._file.read(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BrokenRow("", f"cannot be unpacked by gzip: {str(error).rstrip('.')}") from None
        self._bytes += len(piece)
        check_unfolded(self._path, self._bytes)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()


OTHER_ENCODING = "not UTF-8 but probably"
"""The first words of the reason of a BrokenRow if the file must be saved in another encoding."""


def text_lines(path: str | Path) -> Iterator[tuple[int, str, BrokenRow | None]]:
    r"""Yield the lines of a text file: (number, text with line end, None or the reason why it cannot be decoded).

    Bytes that are not UTF-8 become surrogates; a UTF-16 file ends where it is damaged. Lines end with \n; a byte order
    mark is skipped.
    """
    if encoding_of(path) == "utf-16":
        yield from _wide_lines(path)
        return
    with open_file(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if wide := _wide(raw):
                reason = f"{OTHER_ENCODING} {wide}"
                yield number, raw.decode(errors="surrogateescape"), BrokenRow(number, reason, _saved_again(path, wide))
                continue
            try:
                yield number, raw.decode(), None
            except UnicodeDecodeError as error:
                where = f"byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line"
                guess, repair = _single_byte(raw), ""
                reason = f"not UTF-8 ({where})"
                if not any("\x80" <= letter < "\udc80" for letter in raw.decode(errors="surrogateescape")):
                    reason, repair = f"{OTHER_ENCODING} {guess} ({where})", _saved_again(path, guess)
                yield number, raw.decode(errors="surrogateescape"), BrokenRow(number, reason, repair)


def _saved_again(path: str | Path, encoding: str) -> str:
    """Return advice on how to convert a file to UTF-8."""
    name = Path(path).name
    unpacked = name[: -len(GZIP)] if is_gzip(path) else name
    new = shlex.quote(f"{Path(unpacked).stem}.utf8{Path(unpacked).suffix}")
    file = shlex.quote(Path(path).name)
    command = f"iconv -f {encoding} -t UTF-8 {file} > {new}"
    if is_gzip(path):
        command = f"gunzip -c {file} | iconv -f {encoding} -t UTF-8 > {new}"
    return f"Save the whole file as UTF-8 (spreadsheets call it CSV UTF-8), or convert it: {command}"


def _wide_lines(path: str | Path) -> Iterator[tuple[int, str, BrokenRow | None]]:
    number = 0
    with io.TextIOWrapper(open_file(path), encoding="utf-16", newline="\n") as file:
        try:
            for number, text in enumerate(file, 1):
                yield number, text, None
        except UnicodeDecodeError as error:
            reason = f"not UTF-16, although the file has its byte order mark: {error.reason}"
            yield number + 1, "", BrokenRow(number + 1, reason)


def _wide(raw: bytes) -> str:
    """Return the encoding with several bytes a character that a line seems to have, judged by zeros; "" if none."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if raw.count(0) <= len(raw) / 4:
        return ""
    return "UTF-16LE" if raw[1::2].count(0) > raw[::2].count(0) else "UTF-16BE"


def _single_byte(raw: bytes) -> str:
    """Return the encoding with one byte a character that fits a line: Windows-1252 has letters that Latin 1 lacks."""
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "LATIN1"
    return "CP1252"
