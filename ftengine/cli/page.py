"""Output to stdout: JSON for programs, pages and tables for people. rich is imported when used."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ftengine.text import one_line, printable, redact_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

FILE_WIDTH = 200
"""Columns if stdout is not a terminal: wide enough that tables do not wrap."""


def print_json(value: Any) -> None:
    """Print JSON in ASCII, so that no text in it can control a terminal, with likely personal data redacted.

    NaN becomes null, as in the files of a run.
    """
    from ftengine.run.record import each, without_nan

    click.echo(json.dumps(each(redact_json(value), without_nan), indent=2, allow_nan=False))


def page() -> Console:
    """Return a console for stdout without markup or highlighting, whose text is made safe (`printable`)."""
    from rich.console import Console

    class Page(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    if sys.stdout.isatty():
        return Page(markup=False, highlight=False, emoji=False)
    return Page(file=_Trimmed(), width=FILE_WIDTH, markup=False, highlight=False, emoji=False)


class _Trimmed(io.StringIO):
    """Stdout without the blanks that fill a table's last column."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +(?=\n)", "", text))

    def flush(self) -> None:
        sys.stdout.flush()


def yaml_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """Return a plain table with cells made safe; the first `left` columns are left-aligned, the others right."""
    from rich.table import Table

    result = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        result.add_row(*(one_line(cell) for cell in row))
    return result


def facts(pairs: Iterable[tuple[str, Sequence[str] | None]]) -> Table:
    """Return a table of names and values; a sequence of texts gets a line each, None gets no line."""
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    result.add_column(style="bold", no_wrap=True)
    result.add_column(overflow="fold")
    for name, value in pairs:
        for i, line in enumerate([value] if isinstance(value, str) else value or ()):
            result.add_row("" if i else name, Text(one_line(line)))
    return result
