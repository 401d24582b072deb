"""Answers as a table: CSV and Parquet made of the JSONL that is written as answers come."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ftengine.errors import InputError

LINES = (".jsonl", ".ndjson")
"""Suffixes of files that hold an object a line, which is what is written as answers come."""


def require_format(output: Path) -> None:
    """Refuse an output whose ending names no format that is written (InputError)."""
    if output.suffix.lower() not in (*LINES, *TABLES):
        ending = f"the ending {output.suffix!r}" if output.suffix else "no ending"
        raise InputError(
            f"output {str(output)!r} has {ending}; answers are written as {', '.join((*LINES, *TABLES))}. "
            "Name the file after one of them."
        )


def write_table(lines: Path, output: Path) -> None:
    """Write answers, an object a line, as the table that `output` ends on, and put it there whole.

    Columns are those of the rows, then those of the predictions: {"prediction": {"label": "a"}} has `prediction.label`.
    What is no text, number or truth value is JSON text.
    """
    columns: dict[str, None] = {}
    for row in _rows(lines):
        columns |= dict.fromkeys(row)
    ordered = sorted(columns, key=lambda name: name.partition(".")[0] == "prediction")
    unfinished = output.with_name(f"{output.name}.unfinished")
    TABLES[output.suffix.lower()](lines, ordered, unfinished)
    os.replace(unfinished, output)


def _rows(lines: Path) -> Iterator[dict[str, Any]]:
    with open(lines, encoding="utf-8") as file:
        for line in file:
            content = json.loads(line)
            answer = content.pop("prediction")
            said = answer if isinstance(answer, Mapping) else {"": answer}
            named = {f"prediction.{key}" if key else "prediction": value for key, value in said.items()}
            yield {name: _cell(value) for name, value in {**content, **named}.items()}


def _cell(value: Any) -> Any:
    plain = value is None or isinstance(value, (str, int, float))
    return value if plain else json.dumps(value, ensure_ascii=False)


def _separated(delimiter: str) -> Callable[[Path, list[str], Path], None]:
    def write(lines: Path, columns: list[str], output: Path) -> None:
        with open(output, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_rows(lines))

    return write


def _parquet(lines: Path, columns: list[str], output: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = list(_rows(lines))
    arrays = []
    for name in columns:
        values = [row.get(name) for row in rows]
        if len({type(value) for value in values if value is not None}) > 1:
            values = [None if value is None else str(value) for value in values]
        arrays.append(pa.array(values))
    parquet.write_table(pa.table(arrays, names=columns), output)


TABLES: dict[str, Callable[[Path, list[str], Path], None]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
"""A function that writes lines as a table, by suffix."""
