"""Readers of data."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ftengine.api.component import Component, Traits
from ftengine.api.types import Example
from ftengine.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Place = int | str
"""Where a row is: its line (1-based), or text that goes behind the source's name, such as "[3]" or "/cat/1.png"."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a source: its place, and its values by column, of types that JSON has."""

    place: Place
    values: Example


class BrokenRow(DataError):
    """A row that cannot be read. It is yielded, or raised where nothing after it can be read either.

    Args:
        place: where it is; "" for the source as a whole.
        reason: what is wrong, without a full stop; for the whole source, as the end of a sentence that begins with its
            name.
        repair: what to do, without a full stop, if that is not repairing this row.
    """

    def __init__(self, place: Place, reason: str, repair: str = "") -> None:
        self.place, self.reason, self.repair = place, reason, repair
        super().__init__(self.message(""))

    def message(self, source: str) -> str:
        """Return place and reason; `source` is the name that the recipe gives."""
        return f"{place_of(source, self.place)}{':' if self.place else ''} {self.reason}".strip()


def place_of(source: str, place: Place) -> str:
    """Return the place of a row in a source: "support.jsonl:12", "data.json[11]" or "photos/cat/1.png"."""
    if isinstance(place, int):
        return f"{source}:{place}"
    return f"{source.rstrip('/')}{place}" if place.startswith("/") else f"{source}{place}"


@dataclass(frozen=True)
class ReaderTraits(Traits):
    """Facts about a reader.

    Args:
        by_name: only `data.reader` selects it, as another reader reads the same files in another way.
    """

    by_name: bool = False


class Reader(Component):
    """Reads one format of data; `data.reader` names it, or takes the first that accepts a source.

    Readers of files with certain suffixes derive from `FileReader`.
    """

    traits: ReaderTraits = ReaderTraits()

    @abstractmethod
    def accepts(self, source: str) -> bool:
        """Return whether it can read a source: an existing file or folder, or an address; quick, and never raises."""

    @abstractmethod
    def read(self, source: str) -> Iterable[Row | BrokenRow] | pa.RecordBatchReader:
        """Return the rows, one after another, or record batches of Arrow, whose types are kept.

        Of ftengine's own readers, a file's rows are kept under a hash of its content, for later runs; other readers
        read it in each process. Folders and addresses are read in each run, into memory. Nothing in the data is
        executed. Raise BrokenRow where nothing more can be read.
        """

    # What some write.

    def describe(self, source: str) -> str:
        """Return how a file is read, where a user should know, as the end of a sentence ("is read with …"); else ""."""
        return ""

    def separator(self, source: str) -> str:
        """Return the separator of a table's fields, so that answers are written with the same; "" for other files."""
        return ""

    def files(self, source: str) -> Iterable[str]:
        """Return files read beside the source, so that a change of one is noticed (BrokenRow: none can be found)."""
        return ()

    def hint(self, source: str, columns: list[str]) -> str:
        """Return what is wrong with a file whose columns suit no task, as sentences after a space; "" if nothing."""
        return ""


class FileReader(Reader):
    """Reads files of some suffixes."""

    suffixes: ClassVar[tuple[str, ...]]
    """In small letters, with their dots."""

    def accepts(self, source: str) -> bool:
        return source.lower().endswith(self.suffixes) and os.path.isfile(source)
