"""Predictions from file to file, as a stream that can be interrupted and continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftengine.api import Example
from ftengine.data.read import Rows, read_rows
from ftengine.errors import DataError, RunError
from ftengine.finished import Run


@dataclass(frozen=True)
class PredictionReport:
    """What a prediction run wrote.

    Args:
        output: the file.
        written: lines written now.
        kept: lines that an earlier, interrupted run had written.
    """

    output: str
    written: int
    kept: int


def predict_file(
    run: Run,
    source: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    base: bool = False,
    batch_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> PredictionReport:
    """Answer every row of a file; each line of `output` is the row with its `prediction`.

    Args:
        run: a finished run.
        source: any data file that the task can read; labels are not needed.
        output: a JSONL file; lines are written as they are made.
        resume: keep the complete lines of an interrupted output and go on behind them.
        base: answer with the base model.
        batch_size: rows answered together.
        options: the task's own, e.g. `max_new_tokens`.

    Raises:
        RunError: `output` exists (without resume), or holds lines of another input.
        DataError: a row cannot be answered; found before the model loads.
    """
    output = Path(output)
    section = run.recipe.data
    rows = read_rows(str(source), on_error=section.on_error, columns=section.columns, partial=True)
    _check(run, rows)
    kept = _kept(output, rows, resume)
    if kept == len(rows):
        return PredictionReport(str(output), 0, kept)
    answers = run.predict(_rest(rows, kept), base=base, batch_size=batch_size, **(options or {}))
    run.listener.phase("predict", len(rows))
    run.listener.advance(kept)
    written = 0
    try:
        first = next(answers)  # whatever is wrong with model or options shows before the file is made
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a", encoding="utf-8") as file:
            for i, answer in enumerate(_chain(first, answers), kept):
                file.write(json.dumps({**rows[i], "prediction": answer}, ensure_ascii=False) + "\n")
                file.flush()
                written += 1
                run.listener.advance()
    except OSError as error:
        raise RunError(
            f"cannot write {str(output)!r}: {error.strerror or error}. {written} lines are complete; "
            "--resume continues behind them."
        ) from None
    return PredictionReport(str(output), written, kept)


def _check(run: Run, rows: Rows) -> None:
    task = run.open_job().task
    for i in range(len(rows)):
        try:
            task.check_input(rows[i])
        except DataError as error:
            raise DataError(f"{rows.where(i)}: {error}") from None


def _rest(rows: Rows, start: int) -> Iterator[Example]:
    for i in range(start, len(rows)):
        yield rows[i]


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _kept(output: Path, rows: Rows, resume: bool) -> int:
    """Count the complete lines of an interrupted output and cut off a half-written last one."""
    if output.is_dir():
        raise RunError(f"output {str(output)!r} is a folder; name a file.")
    if not output.exists():
        return 0
    if not resume:
        raise RunError(f"output {str(output)!r} exists. Name another file, or continue it with --resume.")
    kept = good = 0
    with open(output, "rb") as file:
        for line in file:
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if content is None:
                break
            if kept >= len(rows) or {k: v for k, v in content.items() if k != "prediction"} != rows[kept]:
                raise RunError(f"output {str(output)!r}: line {kept + 1} belongs to another input; name another file.")
            kept, good = kept + 1, good + len(line)
    with open(output, "r+b") as file:
        file.truncate(good)
    return kept
