"""Tables: comma- and tab-separated values."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import Field, field_validator

from ftengine.api import BrokenRow, Config, FileReader, Row
from ftengine.data import text_lines
from ftengine.text import comparable, redact_short

LONE_RETURN = (
    r"there is a lone carriage return (\r) outside quotes; end lines with \n or \r\n, and quote fields that contain one"
)

_NAMED = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')


class TableReader(FileReader):
    """CSV and TSV: a record under a header; values stay text, an empty cell is missing.

    A .csv is read with semicolons or tabs if its header has only these outside quotes and no comma, as spreadsheets
    write it in countries with a decimal comma.
    """

    name = "csv"
    suffixes = (".csv", ".tsv", ".csv.gz", ".tsv.gz")

    class Config(Config):
        separator: str = Field(
            "auto",
            description="one character between fields; auto: tabs in a .tsv; commas in a .csv, unless a header differs",
        )

        @field_validator("separator")
        @classmethod
        def _one_character(cls, separator: str) -> str:
            if separator != "auto" and (len(separator) != 1 or separator in '"\r\n'):
                raise ValueError("write one character other than a quote or line break, or auto")
            return separator

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        return _rows(source, self.separator(source))

    def describe(self, source: str) -> str:
        separator = self.separator(source)
        if separator == self._usual(source):
            return ""
        shown = _named(separator) if separator == "\t" else f"{_named(separator)} ({separator})"
        return f"is read with {shown} between fields, as its header has them and no comma"

    def hint(self, source: str, columns: list[str]) -> str:
        return _other_separator(self._usual(source), columns)

    def _usual(self, source: str) -> str:
        """Return the separator by option or suffix."""
        if self.config.separator != "auto":
            return self.config.separator
        return "\t" if source.lower().endswith((".tsv", ".tsv.gz")) else ","

    def separator(self, source: str) -> str:
        """Return the separator by option, suffix or header."""
        usual = self._usual(source)
        if self.config.separator != "auto" or usual != ",":
            return usual
        header = _QUOTED.sub("", next((text for _, text, _ in text_lines(source) if text.strip()), ""))
        candidates = [separator for separator in ",;\t" if separator in header]
        return candidates[0] if len(candidates) == 1 else usual


def _named(separator: str) -> str:
    return _NAMED.get(separator, repr(separator))


def _rows(source: str, delimiter: str) -> Iterator[Row | BrokenRow]:
    undecodable: list[BrokenRow] = []  # lines of the row that is being read
    first: list[str] = []  # the header's first line

    def lines() -> Iterator[str]:
        for _, text, problem in text_lines(source):
            if problem:
                undecodable.append(problem)
            if not first and text.strip():
                first.append(text)
            yield text

    header, again = list[str](), list[str]()
    for start, fields in _records(csv.reader(lines(), delimiter=delimiter, strict=True)):
        problem = undecodable[0] if undecodable else fields if isinstance(fields, BrokenRow) else None
        if problem is fields and (hint := _other_separator(delimiter, first)):
            problem = BrokenRow(start, f"not valid CSV.{hint.rstrip('.')}")
        undecodable.clear()
        if problem is None and fields and not header:
            header = fields
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise BrokenRow(start, f"two columns are named {twice!r}")
            again = comparable(header)
        elif problem is not None and not header:
            raise problem  # without a header, rows have no names
        elif problem is not None:
            yield problem
        elif fields and len(fields) != len(header):
            wrong = f"{len(fields)} fields, but the header has {len(header)}: {redact_short(header)}"
            hint = _other_separator(delimiter, header).rstrip(".")
            yield BrokenRow(start, f"{wrong}.{hint}" if hint else wrong + _why_fields(delimiter, header))
        elif fields and comparable(fields) == again:
            yield BrokenRow(start, "the header is repeated here, as in joined files")
        elif fields:  # a blank line has no fields
            yield Row(start, {name: field or None for name, field in zip(header, fields, strict=True)})


def _records(reader: Any) -> Iterator[tuple[int, Any]]:
    """Yield (first physical line, fields or BrokenRow) of each record of a csv reader."""
    while True:
        start = reader.line_num + 1
        # The limit is global, so change it only while a record is read.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # the quote includes the rest of the file
                raise BrokenRow(start, "not valid CSV: a quote is opened and never closed") from None
            fields = BrokenRow(start, f"not valid CSV: {LONE_RETURN if 'new-line' in str(error) else error}")
        finally:
            csv.field_size_limit(limit)
        yield start, fields


def _other_separator(own: str, header: Sequence[str]) -> str:
    """Return a hint if a header of one column has several under another separator; "" otherwise."""
    if len(header) != 1:
        return ""
    widths = {}
    for separator in ",;\t|":
        with suppress(csv.Error, ValueError):
            [fields] = csv.reader(header, delimiter=separator, strict=True)
            widths[separator] = len(fields)
    other = max(widths, key=lambda separator: widths[separator], default=own)
    if other == own or widths[other] < 2:
        return ""
    return f" Its separator seems to be {_named(other)}: save it with {_named(own)} between fields."


def _why_fields(delimiter: str, header: Sequence[str]) -> str:
    """Return why a row may have another number of fields than the header, in brackets; "" if unknown."""
    if delimiter == ";":
        return " (the file is read with semicolons, as its header has semicolons and no comma)"
    if delimiter == "," and any(";" in name for name in header):
        return " (the header has commas and semicolons; quote names that contain one)"
    return ""
