"""Plain text."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ftengine.api import BrokenRow, Config, FileReader, Row
from ftengine.data import text_lines


class TextReader(FileReader):
    """Text files: each line that is not blank is a row."""

    name = "text"
    suffixes = (".txt", ".txt.gz")

    class Config(Config):
        column: str = Field("text", min_length=1, description="the column that holds the line")

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        for line, text, problem in text_lines(source):
            if problem:
                yield problem
            elif text.strip():
                yield Row(line, {self.config.column: text.rstrip("\r\n")})

    def describe(self, source: str) -> str:
        header = next((text for _, text, _ in text_lines(source) if text.strip()), "")
        table = '. If it is a table, as its tabs suggest, set data.reader={name: csv, separator: "\\t"}'
        read = "is read line by line: each non-blank line is an example; lines of a paragraph are not joined"
        return f"{read}{table}" if "\t" in header.strip() else read
