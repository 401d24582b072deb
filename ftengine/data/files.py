"""Files that readers read: lines of text, sizes in bytes as people write them, and how much room rows may take."""

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
"""Rows may take so many times the bytes of their file, and so many bytes in any case. Text is rarely compressed to less
than a twentieth."""

GZIP = ".gz"
"""How the name of a file ends that gzip packed."""


def check_unfolded(source: str, rows: int) -> None:
    """Refuse a file whose rows take far more bytes than it has (BrokenRow).

    A few kilobytes of a compressed format may stand for more than memory and disk hold. To be called before rows are
    unfolded where the file says how many bytes they take, and it is while they are kept.
    """
    there = os.path.getsize(source)
    allowed = size_in(UNFOLDED_VARIABLE, str(max(UNFOLDED_TIMES * there, UNFOLDED_LEAST)))
    if rows > allowed:
        raise BrokenRow(
            "",
            f"has {size(there)}, and its rows take {size(rows)} or more; {size(allowed)} are allowed. Where "
            f"that is no mistake, allow as much with {UNFOLDED_VARIABLE}, as in {UNFOLDED_VARIABLE}=5GB",
        )


def encoding_of(path: str | Path) -> str:
    """Return how a text file is encoded by its byte order mark: "utf-16", as spreadsheets write it, or "utf-8-sig"."""
    with open_file(path) as file:
        beginning = file.read(4)
    wide = beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and beginning != codecs.BOM_UTF32_LE
    return "utf-16" if wide else "utf-8-sig"


def has_mark(path: str | Path) -> bool:
    """Say whether a text file begins with a byte order mark, by which spreadsheets know its encoding."""
    with open_file(path) as file:
        return file.read(4).startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file to read its bytes; one that ends in .gz is unfolded as it is read, as far as is allowed.

    Raises:
        BrokenRow: when it is read: it is no gzip file, is damaged, or unfolds to far more bytes than it has.
    """
    return io.BufferedReader(_Unfolded(path), 1 << 16) if is_gzip(path) else open(path, "rb")  # type: ignore[arg-type]


def is_gzip(path: str | Path) -> bool:
    """Say whether a file is packed by gzip, by its name."""
    return str(path).lower().endswith(GZIP)


class _Unfolded(io.RawIOBase):
    """What a gzip file holds, counted."""

    def __init__(self, path: str | Path) -> None:
        self._path, self._file, self._bytes = str(path), gzip.GzipFile(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._file.read(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BrokenRow("", f"is no gzip file that can be read: {str(error).rstrip('.')}") from None
        self._bytes += len(piece)
        check_unfolded(self._path, self._bytes)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()


OTHER_ENCODING = "not UTF-8 but probably"
"""What the reason of a row begins with whose file is to be saved again."""


def text_lines(path: str | Path) -> Iterator[tuple[int, str, BrokenRow | None]]:
    r"""Yield the lines of a text file (`encoding_of`): (number, text with its end, None or why it cannot be decoded).

    Bytes that are no UTF-8 stay in the text as surrogates; a file in UTF-16 ends where it is damaged. Lines end with
    \n; a byte order mark is passed over.
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
    """Say how a file becomes UTF-8."""
    name = Path(path).name
    whole = name[: -len(GZIP)] if is_gzip(path) else name
    new = shlex.quote(f"{Path(whole).stem}.utf8{Path(whole).suffix}")
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
            reason = f"not UTF-16, as the file's byte order mark says: {error.reason}"
            yield number + 1, "", BrokenRow(number + 1, reason)


def _wide(raw: bytes) -> str:
    """Return in which encoding of several bytes a character a line is, by its zeros; "" where it has few."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if raw.count(0) <= len(raw) / 4:
        return ""
    return "UTF-16LE" if raw[1::2].count(0) > raw[::2].count(0) else "UTF-16BE"


def _single_byte(raw: bytes) -> str:
    """Return which encoding of a byte a character a line is in: Windows has letters where Latin 1 has none."""
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "LATIN1"
    return "CP1252"
