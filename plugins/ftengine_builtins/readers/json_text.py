"""JSON: one object per line, or one list of objects."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from ftengine.api import BrokenRow, FileReader, Row
from ftengine.data import encoding_of, open_file, text_lines
from ftengine.errors import shown
from ftengine.text import redact_short


class JsonLinesReader(FileReader):
    """JSON Lines: an object on each line."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        for line, text, problem in text_lines(source):
            if problem:
                yield problem
            elif text.strip():
                try:
                    yield _row(line, _STRICT.decode(text.rstrip("\r\n")))
                except _Doubled as error:
                    yield BrokenRow(line, str(error))
                except RecursionError:
                    yield BrokenRow(line, _TOO_DEEP)
                except ValueError as error:  # JSONDecodeError, or a number with thousands of digits
                    is_decode_error = isinstance(error, json.JSONDecodeError)
                    hint = _LIST if line == 1 and text[0] == "[" else _cause(text, error.pos) if is_decode_error else ""
                    column = f" at column {error.colno}" if is_decode_error else ""
                    yield BrokenRow(line, f"not valid JSON: {getattr(error, 'msg', error)}{column}{hint}")


class JsonReader(FileReader):
    """JSON: one list of objects, read one by one."""

    name = "json"
    suffixes = (".json", ".json.gz")

    def accepts(self, source: str) -> bool:
        return super().accepts(source) and os.path.basename(source) != "dataset_info.json"  # a list of data sets

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        with open_file(source) as file:
            yield from _json_list(_JsonWindow(file, source))


_LIST = " (a file that is one list has the suffix .json)"


def _cause(text: str, at: int) -> str:
    """Return a frequent cause of invalid JSON, in brackets; "" if none applies."""
    before, rest = text[:at].rstrip(), text[at:].strip()
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return " (remove the comma before the closing bracket)"
    if rest == ",":
        return " (remove the comma between lines)"
    if before.endswith("}") and rest.startswith("{"):
        return " (a second object on the line; write one object per line)"
    if rest.startswith(("'", "None", "True", "False")):
        return " (Python's notation; JSON has double quotes, null, true and false)"
    return " (the line is incomplete)" if not rest else ""


def _row(place: int | str, values: Any) -> Row | BrokenRow:
    if isinstance(values, dict):
        return Row(place, values)
    hint = _LIST if isinstance(values, list) and place == 1 else ""
    return BrokenRow(place, f"a row must be an object {{…}}, not {redact_short(values)}{hint}")


def _json_list(text: _JsonWindow) -> Iterator[Row | BrokenRow]:
    if not text.peek():
        return
    if text.peek() != "[":
        reason = f"a .json file must be one list of objects, but this one begins with {text.peek()!r} "
        raise BrokenRow(text.line, reason + "(a file with one object a line has the suffix .jsonl)")
    text.skip(1)
    separator = text.peek()
    if separator == "]":
        text.skip(1)
    number = 0
    while separator != "]":
        text.peek()  # go to the beginning of the object, for its line
        value, problem = text.value()
        yield BrokenRow(f"[{number}]", problem) if problem else _row(f"[{number}]", value)
        number += 1
        separator = text.peek()
        if separator not in (",", "]"):
            raise BrokenRow(text.line, f"not valid JSON: {separator or 'end of file'!r} where ',' or ']' is expected")
        text.skip(1)
    if text.peek():
        raise BrokenRow(text.line, f"not valid JSON: {text.peek()!r} after the end of the list")


class _JsonWindow:
    """A window on a JSON text that grows until the next value fits, so that files are not read into memory."""

    SIZE = 1 << 20

    def __init__(self, file: IO[bytes], source: str) -> None:
        self.file, self.source = file, source
        self.decode = codecs.getincrementaldecoder(encoding_of(source))().decode
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def skip(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def peek(self) -> str:
        """Skip white space and return the next character; "" at the end."""
        while True:
            self.skip(_SPACE.match(self.text, self.at).end() - self.at)  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._grow()

    def value(self) -> tuple[Any, str]:
        """Read one JSON value; return it with a problem such as a repeated key, or ""."""
        decoder, problem = _STRICT, ""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
                # A number at the end of the window may be incomplete.
                if end < len(self.text) or self.ended:
                    self.skip(end - self.at)
                    return value, problem
            except _Doubled as error:
                decoder, problem = _DECODER, str(error)  # read on to find the end of the value
                continue
            except RecursionError:
                raise BrokenRow(self.line, _TOO_DEEP) from None
            except ValueError as error:
                if self.ended:
                    line = self.line + self.text.count("\n", self.at, getattr(error, "pos", self.at))
                    raise BrokenRow(line, f"not valid JSON: {getattr(error, 'msg', error)}") from None
            self._grow()

    def _grow(self) -> None:
        # Double at least, so that a value of any size is parsed in linear time.
        chunk = self.file.read(max(self.SIZE, len(self.text) - self.at))
        self.ended = not chunk
        try:
            self.text = self.text[self.at :] + self.decode(chunk, self.ended)
        except UnicodeDecodeError:
            raise next(problem for _, _, problem in text_lines(self.source) if problem) from None
        self.at = 0


class _Doubled(Exception):
    """An object has a key twice; the json module would silently keep one of the values."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        count = Counter(key for key, _ in pairs)
        raise _Doubled(f"the key {shown(next(key for key in count if count[key] > 1))} occurs twice in one object")
    return values


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_TOO_DEEP = "not valid JSON: nested too deeply"
