"""Tables of answers: CSV, Parquet and NumPy files converted from the JSONL that prediction writes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftengine.data.files import GZIP, has_mark
from ftengine.data.rows import DataRows
from ftengine.errors import InputError

ANSWER = "prediction"
"""The key of a row's answer in JSONL, and the prefix of its columns in a table."""
MOST_CLASSES = 50
"""Most classes whose scores get a column each in a table."""

TableRows = Iterable[dict[str, Any]]

LINES = (".jsonl", ".ndjson")
"""Suffixes of files with one JSON object a line, the format in which prediction writes answers."""


@dataclass(frozen=True)
class Form:
    """The format of a table in text form.

    Args:
        separator: between fields.
        marked: whether it begins with a byte order mark, which spreadsheets need to recognise UTF-8.
    """

    separator: str
    marked: bool = False

    @classmethod
    def of(cls, output: Path, source: Path, rows: DataRows) -> Form:
        """Return the format for a table of answers: that of the input table if both have the same suffix."""
        own = output.suffix.lower()
        alike = source.name.lower().removesuffix(GZIP).endswith(own)
        separator = rows.separator if alike and rows.separator else SEPARATORS.get(own, "")
        return cls(separator, bool(rows.separator) and own in SEPARATORS and has_mark(source))

    def unusual(self, output: Path) -> str:
        """Return what differs from the default format of such a file in words; "" if nothing does."""
        other = self.separator != SEPARATORS.get(output.suffix.lower(), "")
        parts = [f"separator {self.separator!r}"] if other else []
        return " and ".join([*parts, *(["a UTF-8 byte order mark"] if self.marked else [])])


def require_format(output: Path, *, vectors: bool) -> None:
    """Raise InputError if the output's ending is no format for these answers; .npy takes only `vectors`."""
    endings = (*LINES, *(ending for ending in TABLES if vectors or ending != MATRIX))
    ending = output.suffix.lower()
    if ending in endings:
        return
    problem = f"has {f'the ending {output.suffix!r}' if ending else 'no ending'}"
    if ending == MATRIX:
        problem = f"is a {MATRIX} file, which holds one vector a row, but this task does not answer with vectors"
    raise InputError(
        f"output {str(output)!r} {problem}; answers are written as {', '.join(endings)}. Use one of these endings."
    )


def write_table(lines: Path, output: Path, form: Form) -> None:
    """Convert a JSONL file of answers to the format of `output`'s ending, and write it atomically.

    The columns of the rows come first, then those of the predictions: {"prediction": {"label": "a", "scores": {"a":
    0.9}}} becomes `prediction.label` and `prediction.scores.a`. Scores of more than `MOST_CLASSES` classes stay in one
    cell. Values other than text, numbers and booleans are written as JSON text, except that Parquet keeps lists of
    numbers. A .npy file has only the vectors, float32, in the order of the rows. `form` matters only for text formats.
    """
    spread = _spread(lines)
    columns: dict[str, None] = {}
    for row in _rows(lines, spread):
        columns |= dict.fromkeys(row)
    ordered = sorted(columns, key=lambda name: name.partition(".")[0] == ANSWER)
    unfinished = output.with_name(f"{output.name}.unfinished")
    TABLES[output.suffix.lower()](_rows(lines, spread), ordered, unfinished, form)
    os.replace(unfinished, output)


def _spread(lines: Path) -> set[str]:
    """Return the parts of predictions that are mappings from few names to numbers, which get a column for each name."""
    names: dict[str, dict[str, None]] = {}
    undivided: set[str] = set()
    for _, answer in _answers(lines):
        for part, value in answer.items():
            if isinstance(value, Mapping) and all(isinstance(number, (int, float)) for number in value.values()):
                names.setdefault(part, {}).update(dict.fromkeys(value))
            else:
                undivided.add(part)
    return {part for part, values in names.items() if 0 < len(values) <= MOST_CLASSES} - undivided


def _answers(lines: Path) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Yield each row with the parts of its prediction by name; a prediction without parts has the name ""."""
    with open(lines, encoding="utf-8") as file:
        for line in file:
            content = json.loads(line)
            answer = content.pop(ANSWER)
            yield content, answer if isinstance(answer, Mapping) else {"": answer}


def _rows(lines: Path, spread: Collection[str]) -> Iterator[dict[str, Any]]:
    for row, answer in _answers(lines):
        named = {f"{ANSWER}.{part}" if part else ANSWER: v for part, v in answer.items() if part not in spread}
        named |= {f"{ANSWER}.{part}.{name}": v for part in answer if part in spread for name, v in answer[part].items()}
        yield {**row, **named}


def _cell(value: Any) -> Any:
    plain = value is None or isinstance(value, (str, int, float))
    return value if plain else json.dumps(value, ensure_ascii=False)


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, float) for x in value)


def vector_of(answer: Any) -> list[float] | None:
    """Return the answer if it is a vector, or its only vector; None if it has none or several."""
    vectors = [x for x in (answer.values() if isinstance(answer, Mapping) else [answer]) if _is_vector(x)]
    return vectors[0] if len(vectors) == 1 else None


def _separated(rows: TableRows, columns: list[str], output: Path, form: Form) -> None:
    with open(output, "w", encoding="utf-8-sig" if form.marked else "utf-8", newline="") as file:
        # Readers guess the separator from characters outside quotes in the header.
        marked = any(mark in name for name in columns for mark in ",;\t")
        plain: dict[str, Any] = {"delimiter": form.separator, "lineterminator": "\n"}
        csv.writer(file, **plain, quoting=csv.QUOTE_ALL if marked else csv.QUOTE_MINIMAL).writerow(columns)
        writer = csv.DictWriter(file, columns, **plain)
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _parquet(rows: TableRows, columns: list[str], output: Path, form: Form) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def column(values: list[Any]) -> pa.Array:
        if values and all(value is None or _is_vector(value) for value in values):
            return pa.array(values, pa.list_(pa.float32()))
        values = [_cell(value) for value in values]
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) < 2 or kinds == {int, float}:
            with suppress(pa.ArrowInvalid, OverflowError):  # integers may be too large for Arrow's types
                return pa.array(values)
        return pa.array([None if value is None else str(value) for value in values])

    all_rows = list(rows)
    arrays = [column([row.get(name) for row in all_rows]) for name in columns]
    parquet.write_table(pa.table(arrays, names=columns), output)


def _matrix(rows: TableRows, columns: list[str], output: Path, form: Form) -> None:
    import numpy as np

    answers = ({name: x for name, x in row.items() if name.partition(".")[0] == ANSWER} for row in rows)
    with open(output, "wb") as file:
        np.save(file, np.array([vector_of(answer) for answer in answers], dtype=np.float32))


MATRIX = ".npy"

SEPARATORS = {".csv": ",", ".tsv": "\t"}

TABLES: dict[str, Callable[[TableRows, list[str], Path, Form], None]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
    MATRIX: _matrix,
}
"""The function that writes each format, by suffix."""
