"""Text files to rows, one at a time, each with its physical line.

A row that cannot be read is handed out as a value (`Malformed`), so that the reader decides whether it
ends the run. Raised, the same class means that the rest of the file cannot be read.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from ftengine.api import redact
from ftengine.errors import DataError

Line = tuple[int, Any]
"""A physical line (1-based) and the value that begins there; of a list, its element's number (from 0) and the value."""

LIST = ".json"
"""Suffix of the format whose rows are elements of one list, which may all stand on one line."""


def place_of(source: str, number: int) -> str:
    """Return where a row of a text file is: "data.jsonl:12" by its line, "data.json[11]" by its element."""
    return f"{source}[{number}]" if source.lower().endswith(LIST) else f"{source}:{number}"


class Malformed(DataError):
    """Something in a text file that is no row.

    Args:
        line: physical line, 1-based.
        reason: what is wrong with it, without a full stop.
        element: whether it is an element of a list, and `line` its number.
    """

    def __init__(self, line: int, reason: str, *, element: bool = False) -> None:
        self.place = f"[{line}]" if element else f":{line}"
        self.reason = reason
        super().__init__(f"{'element' if element else 'line'} {line}: {reason}")


def parse(file: BinaryIO, suffix: str) -> Iterator[tuple[int, Iterable[str], bytes] | Malformed]:
    """Yield (number, columns, row as JSON in UTF-8) or what is wrong, in the file's order; number as in `Line`.

    Args:
        file: a text file opened in binary mode, at its start.
        suffix: a key of `PARSERS`.

    Raises:
        Malformed: nothing after this place can be read.
    """
    element = suffix == LIST
    for item in PARSERS[suffix](file):
        if isinstance(item, Malformed):
            yield item
            continue
        line, row = item
        if not isinstance(row, dict):
            yield Malformed(line, f"a row is an object {{…}}, not {_short(row)}", element=element)
            continue
        try:
            # Strict encoding, as half of a surrogate pair ("\ud83d") breaks every tokenizer later on.
            content = _to_json(row).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            reason = f"holds {half}, half of a surrogate pair, which is no character"
            yield Malformed(line, reason, element=element)
        except RecursionError:
            yield Malformed(line, _TOO_DEEP, element=element)
        else:
            yield line, row.keys(), content


_to_json = json.JSONEncoder(ensure_ascii=False).encode
_TOO_DEEP = "not valid JSON: nested too deeply"


def _lines(file: BinaryIO) -> Iterator[tuple[int, str, str]]:
    """Yield (line, its text, "" or why it is no UTF-8); undecodable bytes stay in the text as surrogates."""
    for line, raw in enumerate(file, 1):
        if line == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            yield line, raw.decode(), ""
        except UnicodeDecodeError as error:
            found = "UTF-16" if line == 1 and raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "LATIN1"
            yield (
                line,
                raw.decode(errors="surrogateescape"),
                f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line "
                f"(convert the file first, for example with `iconv -f {found} -t UTF-8`)",
            )


def _json_lines(file: BinaryIO) -> Iterator[Line | Malformed]:
    for line, text, problem in _lines(file):
        if problem:
            yield Malformed(line, problem)
        elif text.strip():
            try:
                yield line, json.loads(text.rstrip("\r\n"))
            except RecursionError:
                yield Malformed(line, _TOO_DEEP)
            except ValueError as error:  # JSONDecodeError, or a number with thousands of digits
                hint = " (a file that is one list has the suffix .json)" if line == 1 and text[0] == "[" else ""
                column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                yield Malformed(line, f"not valid JSON: {getattr(error, 'msg', error)}{column}{hint}")


def _text(file: BinaryIO) -> Iterator[Line | Malformed]:
    for line, text, problem in _lines(file):
        if problem:
            yield Malformed(line, problem)
        elif text.strip():
            yield line, {"text": text.rstrip("\r\n")}


SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""What separates fields, by suffix."""
_NAMED = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')


def separator_of(file: BinaryIO, suffix: str) -> str:
    """Return what separates the fields of a table opened at its start; "" where the suffix is of no table.

    A .csv is read with semicolons or tabs where these alone, and no comma, stand outside of quotes in its header, as
    spreadsheets write it where the comma is the decimal one. The file is left at its start.
    """
    own = SEPARATORS.get(suffix, "")
    if own != ",":
        return own
    header = _QUOTED.sub("", next((text for _, text, _ in _lines(file) if text.strip()), ""))
    file.seek(0)
    found = [separator for separator in ",;\t" if separator in header]
    return found[0] if len(found) == 1 else own


def other_separator(own: str, header: Sequence[str]) -> str:
    """Say that the one column of a header looks like several under another separator; "" where it does not."""
    if len(header) != 1:
        return ""
    found = {}
    for separator in ",;\t|":
        try:
            [fields] = csv.reader(header, delimiter=separator, strict=True)
        except (csv.Error, ValueError):
            continue
        found[separator] = len(fields)
    other = max(found, key=lambda separator: found[separator], default=own)
    if other == own or found[other] < 2:
        return ""
    return f" Its separator seems to be {_NAMED[other]}: save it with {_NAMED[own]} between fields."


def _why_fields(delimiter: str, header: Sequence[str]) -> str:
    """Say why a row may have another number of fields than the header, in brackets; "" where nothing is odd."""
    if delimiter == ";":
        return " (it is read with semicolons, as its header has them and no comma)"
    if delimiter == "," and any(";" in name for name in header):
        return " (its header holds commas and semicolons; put names that hold one in quotes)"
    return ""


def _separated(suffix: str) -> Callable[[BinaryIO], Iterator[Line | Malformed]]:
    def rows(file: BinaryIO) -> Iterator[Line | Malformed]:
        delimiter = separator_of(file, suffix)
        undecodable: list[Malformed] = []  # lines of the row that is being read
        first: list[str] = []  # the header's first line

        def lines() -> Iterator[str]:
            for line, text, problem in _lines(file):
                if problem:
                    undecodable.append(Malformed(line, problem))
                if not first and text.strip():
                    first.append(text)
                yield text

        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        header: list[str] = []
        for start, fields in _records(reader):
            problem = undecodable[0] if undecodable else fields if isinstance(fields, Malformed) else None
            if problem is fields and (hint := other_separator(delimiter, first)):
                problem = Malformed(start, f"not valid CSV.{hint.rstrip('.')}")
            undecodable.clear()
            if problem is None and fields and not header:
                header = fields
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise Malformed(start, f"two columns are named {twice!r}")
            elif problem is not None and not header:
                raise problem  # without a header no row has names
            elif problem is not None:
                yield problem
            elif fields and len(fields) != len(header):
                wrong = f"{len(fields)} fields, but the header has {len(header)}: {_short(header)}"
                hint = other_separator(delimiter, header).rstrip(".")
                yield Malformed(start, f"{wrong}.{hint}" if hint else wrong + _why_fields(delimiter, header))
            elif fields:  # a blank line has none
                yield start, {name: field or None for name, field in zip(header, fields, strict=True)}

    return rows


def _records(reader: Any) -> Iterator[Line]:
    """Yield (first physical line, fields or Malformed) of each record of a csv reader."""
    while True:
        start = reader.line_num + 1
        # The limit belongs to the whole process, so it is ours only while a record is read.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # it has swallowed the rest of the file
                raise Malformed(start, "not valid CSV: a quote is opened and never closed") from None
            fields = Malformed(start, f"not valid CSV: {error}")
        finally:
            csv.field_size_limit(limit)
        yield start, fields


def _json_list(file: BinaryIO) -> Iterator[Line | Malformed]:
    text = _JsonWindow(file)
    if not text.peek():
        return
    if text.peek() != "[":
        raise Malformed(
            text.line,
            f"a .json file is one list of objects, this one begins with {text.peek()!r} "
            "(a file with one object a line has the suffix .jsonl)",
        )
    text.skip(1)
    separator = text.peek()
    if separator == "]":
        text.skip(1)
    number = 0
    while separator != "]":
        text.peek()  # go to where the object begins, for its line
        yield number, text.value()
        number += 1
        separator = text.peek()
        if separator not in (",", "]"):
            raise Malformed(text.line, f"not valid JSON: {separator or 'end of file'!r} where ',' or ']' must stand")
        text.skip(1)
    if text.peek():
        raise Malformed(text.line, f"not valid JSON: {text.peek()!r} after the end of the list")


class _JsonWindow:
    """A window on a JSON text that grows until the next value fits, so that no file is held as a whole."""

    SIZE = 1 << 20

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def skip(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def peek(self) -> str:
        """Pass over white space and return the next character, "" at the end."""
        while True:
            self.skip(_SPACE.match(self.text, self.at).end() - self.at)  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._grow()

    def value(self) -> Any:
        """Pass over one JSON value and return it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                # A number at the window's edge may go on behind it.
                if end < len(self.text) or self.ended:
                    self.skip(end - self.at)
                    return value
            except RecursionError:
                raise Malformed(self.line, _TOO_DEEP) from None
            except ValueError as error:
                if self.ended:
                    line = self.line + self.text.count("\n", self.at, getattr(error, "pos", self.at))
                    raise Malformed(line, f"not valid JSON: {getattr(error, 'msg', error)}") from None
            self._grow()

    def _grow(self) -> None:
        # At least doubled, so that a value of any size is parsed in linear time.
        chunk = self.file.read(max(self.SIZE, len(self.text) - self.at))
        self.ended = not chunk
        try:
            self.text = self.text[self.at :] + self.decode(chunk, self.ended)
        except UnicodeDecodeError:
            self.file.seek(0)
            raise next(Malformed(line, problem) for line, _, problem in _lines(self.file) if problem) from None
        self.at = 0


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def _short(value: Any) -> str:
    try:
        # Redacted before it is cut, as half of a value is not recognised.
        text = redact(_to_json(value).encode(errors="backslashreplace").decode())
    except RecursionError:
        return "deeply nested lists"
    return text if len(text) <= 60 else text[:57] + "..."


PARSERS: dict[str, Callable[[BinaryIO], Iterator[Line | Malformed]]] = {
    **{suffix: _separated(suffix) for suffix in SEPARATORS},
    LIST: _json_list,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".txt": _text,
}
"""A function from an open file to its rows, by suffix in lower case."""
