"""Readers of data."""

from __future__ import annotations

import codecs
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ftengine.api.component import Component
from ftengine.api.types import Example
from ftengine.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Place = int | str
"""Where a row is: its line (1-based), or text that goes behind the source's name, such as "[3]" or "/cat/1.png"."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as its source has it: where it is, and its values by column, of types that JSON has."""

    place: Place
    values: Example


class BrokenRow(DataError):
    """A row that cannot be read. Raised rather than yielded, it says that nothing after it can be read either.

    Args:
        place: where it is; "" for the source as a whole.
        reason: what is wrong with it, without a full stop; of the source as a whole, going on from its name.
    """

    def __init__(self, place: Place, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(self.told(""))

    def told(self, source: str) -> str:
        """Return place and reason, given what the source is called."""
        return f"{place_of(source, self.place)}{':' if self.place else ''} {self.reason}".strip()


def place_of(source: str, place: Place) -> str:
    """Return where a row of a source is: "support.jsonl:12", "data.json[11]" or "photos/cat/1.png"."""
    if isinstance(place, int):
        return f"{source}:{place}"
    return f"{source.rstrip('/')}{place}" if place.startswith("/") else f"{source}{place}"


class Reader(Component):
    """Reads one format of data; `data.reader` names it, or takes the first that accepts a source.

    One that reads files of some suffixes derives from `FileReader`.
    """

    @abstractmethod
    def accepts(self, source: str) -> bool:
        """Say whether it can read a source: a file or folder that is there, or an address; quick, and never raises."""

    @abstractmethod
    def read(self, source: str) -> Iterable[Row | BrokenRow] | pa.RecordBatchReader:
        """Return the rows, one after another, or record batches of Arrow, whose types are kept.

        A file is read once: its rows are kept under a hash of its content and of this reader's module, version and
        options. Folders and addresses are read in each run, into memory. Nothing in the data is executed. Raise
        BrokenRow where nothing more can be read.
        """

    # What some write.

    def describe(self, source: str) -> str:
        """Return how a file is read where that is worth a word, going on from its name ("is read with …"); else ""."""
        return ""

    def hint(self, source: str, columns: list[str]) -> str:
        """Return what is wrong with a file if these columns suit no task, as sentences after a blank; "" if nothing."""
        return ""


class FileReader(Reader):
    """Reads files of some suffixes."""

    suffixes: ClassVar[tuple[str, ...]]
    """In small letters, with their dots."""

    def accepts(self, source: str) -> bool:
        return source.lower().endswith(self.suffixes) and os.path.isfile(source)


def encoding_of(path: str | Path) -> str:
    """Return how a text file is encoded by its byte order mark: "utf-16", as spreadsheets write it, or "utf-8-sig"."""
    with open(path, "rb") as file:
        beginning = file.read(4)
    wide = beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and beginning != codecs.BOM_UTF32_LE
    return "utf-16" if wide else "utf-8-sig"


def text_lines(path: str | Path) -> Iterator[tuple[int, str, str]]:
    r"""Yield the lines of a text file (`encoding_of`): (number, text with its end, "" or why it cannot be decoded).

    Bytes that are no UTF-8 stay in the text as surrogates; a file in UTF-16 ends where it is damaged. Lines end with
    \n; a byte order mark is passed over.
    """
    if encoding_of(path) == "utf-16":
        yield from _wide_lines(path)
        return
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, raw.decode(), ""
            except UnicodeDecodeError as error:
                yield (
                    number,
                    raw.decode(errors="surrogateescape"),
                    f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line "
                    f"(convert the file first, for example with `iconv -f {_single_byte(raw)} -t UTF-8`)",
                )


def _wide_lines(path: str | Path) -> Iterator[tuple[int, str, str]]:
    number = 0
    with open(path, encoding="utf-16", newline="\n") as file:
        try:
            for number, text in enumerate(file, 1):
                yield number, text, ""
        except UnicodeDecodeError as error:
            yield number + 1, "", f"not UTF-16, as the file's byte order mark says: {error.reason}"


def _single_byte(raw: bytes) -> str:
    """Return which encoding of a byte a character a line is in: Windows has letters where Latin 1 has none."""
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "LATIN1"
    return "CP1252"
