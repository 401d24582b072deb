"""Predicting from file to file, as a stream that can be interrupted and continued."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ftengine.data.answer_origin import AnswerOrigin
from ftengine.data.answer_tables import ANSWER, TABLES, Form, require_format, write_table
from ftengine.data.read import plain, read_rows
from ftengine.data.rows import DataRows
from ftengine.engine.answering import Answering
from ftengine.engine.prepared_data import check_inputs, inferring
from ftengine.errors import DataError, RunError, column_names, did_you_mean
from ftengine.run.directory import LOCK, locked, writing


@dataclass(frozen=True)
class PredictionReport:
    """What a prediction run wrote: the number of lines of `output` written now, and `kept` from an interrupted run.

    Args:
        form: describes the form of an output table if the input's form is unusual; "" otherwise.
    """

    output: str
    written: int
    kept: int
    form: str = ""


def predict_rows(run: Answering, source: str | Path, **settings: Any) -> Iterator[dict[str, Any]]:
    """Answer the rows of a file one after the other; each is yielded as the row with its `prediction`.

    Args:
        run: a finished run, or a base model (`load_model`).
        source: any data file that the task can read; labels are not needed.
        settings: of `Answering.predict`: base, calibrated, batch_size, options, samples.

    Raises:
        DataError: a row cannot be answered; raised before the model is loaded.
        InputError: the task does not have an option, or the run has no calibration.
    """
    yield from _answered(run, _checked(run, source), 0, **settings)


def _answered(run: Answering, rows: DataRows, start: int, **settings: Any) -> Iterator[dict[str, Any]]:
    answers = run.predict((rows[i] for i in range(start, len(rows))), **settings)
    for i, answer in enumerate(answers, start):
        if i == start:  # the model is loaded
            run.listener.phase("predict", len(rows))
            run.listener.advance(start)
        yield {**_as_in_file(rows, i), ANSWER: answer}
        run.listener.advance()


def predict_file(
    run: Answering, source: str | Path, output: str | Path, *, resume: bool = False, **settings: Any
) -> PredictionReport:
    """Answer every row of a file and write the answers to another, as JSONL line by line or as a table.

    A table (CSV, TSV, Parquet, vectors in .npy) is converted from `OUTPUT.part` (JSONL, then removed) once all rows are
    answered; CSV and TSV take the input's form (`Form`).
    What made the answers is written beside them (`AnswerOrigin`).

    Args:
        output: the file; its ending determines the format.
        resume: keep the complete lines of an interrupted output and continue after them.
        settings: as of `predict_rows`.

    Raises:
        RunError: `output` exists (without `resume`, or as a table), has another origin, or holds other lines.
        InputError: the ending of `output` is no known format, or is for vectors and the task gives none.
        DataError, InputError: as `predict_rows`; no output is written.
    """
    output = Path(output)
    require_format(output, vectors=run.task.traits.answers_vectors)
    as_table = output.suffix.lower() in TABLES
    lined = output.with_name(f"{output.name}.part") if as_table else output
    rows = _checked(run, source, table=as_table)
    form = Form.of(output, Path(source).expanduser(), rows)
    if as_table and output.exists():
        raise RunError(f"output {str(output)!r} exists and is finished. Name another file.")
    with _output_lock(output):
        made = run.answering(**{name: value for name, value in settings.items() if name != "batch_size"})
        origin = AnswerOrigin.of(made, source, rows, run.task)
        if resume and lined.is_file() and lined.stat().st_size:
            origin.require_same(output)
        complete, good = _complete_lines(lined, rows, resume)
        lines = _answered(run, rows, complete, **settings)
        written = 0
        try:
            first = next(lines, None)  # whatever is wrong with model or options shows before the file is made
            if first is not None:
                _write_origin(origin, run, output, continues=complete > 0)
            if lined.exists():
                os.truncate(lined, good)
            if first is not None:
                with open(lined, "a", encoding="utf-8") as file:
                    for line in chain([first], lines):
                        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                        file.flush()
                        written += 1
            if as_table:
                write_table(lined, output, form)
                lined.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write {str(output)!r}: {error.strerror or error}. {written} lines are complete; "
                "--resume continues after them."
            ) from None
    return PredictionReport(str(output), written, complete, form.unusual(output))


def _write_origin(origin: AnswerOrigin, run: Answering, output: Path, *, continues: bool) -> None:
    """Write the origin of the answers, with the fingerprint of the base as it was loaded."""
    origin = origin.model_copy(update={"base": dict(run.base_now)})
    if continues:
        origin.require_same(output)
    origin.write_beside(output)


@contextmanager
def _output_lock(output: Path) -> Iterator[None]:
    """Lock an output file (RunError: another process writes it)."""
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.with_name(f".{output.name}{LOCK}"), f"output {str(output)!r}"):
        yield


def _checked(run: Answering, source: str | Path, *, table: bool = False) -> DataRows:
    """Read a file and check that every row can be answered, and that answers overwrite no column."""
    section, task = run.recipe.data, run.task
    inferring(task)
    # As `fail` would name a key of the recipe, which is of no use here, what was skipped is refused below.
    rows = read_rows(
        str(source),
        registry=run.registry,
        reader=section.reader,
        on_error="skip",
        columns=section.columns,
        partial=True,
        task=task,
    )
    _require_free(rows, table)
    if rows.skipped.count and section.on_error == "fail":
        raise DataError(f"{rows.skipped.first[0]}.{'' if rows.hint else ' Repair this row of the file, or remove it.'}")
    if rows.skipped.count:
        run.listener.message(f"{rows.source}: {rows.skipped.count:,} malformed rows are left out, as the recipe says")
    try:
        check_inputs(task, rows, rows.where)
    except DataError as error:
        if rows.hint:
            raise DataError(f"{rows.source} has one column, {rows.columns[0]!r}.{rows.hint}") from None
        columns, named = column_names([*rows.names.values()]), re.findall("`([^`]+)`", str(error))
        renamed = [name for name in named if name in section.columns]
        if renamed and not set(named) & set(rows.columns):  # a column that is not there, not a row without a value
            column = section.columns[renamed[0]]
            raise DataError(
                f"{rows.source} has no column {column!r}, which the run reads as `{renamed[0]}` (data.columns in its "
                f"recipe). Its columns: {columns}.{did_you_mean(column, rows.names.values())}"
            ) from None
        raise DataError(f"{error} Fill in such rows of the file, or remove them. Its columns: {columns}.") from None
    return rows


def _require_free(rows: DataRows, table: bool) -> None:
    """Raise DataError if the file has a column that answers would overwrite."""
    for name in _columns(rows).values():
        if name == ANSWER or (table and name.startswith(f"{ANSWER}.")):
            alternative = ", or write the answers as .jsonl" if name != ANSWER else ""
            raise DataError(
                f"{rows.source} has a column {name!r}, which the answers could overwrite. Rename it there, or take it "
                f"out{alternative}."
            )


def _columns(rows: DataRows) -> dict[str, str]:
    """Return each column's name in the output: as in the file, unless an answer has that name."""
    return {name: name if theirs.split(".")[0] == ANSWER else theirs for name, theirs in rows.names.items()}


def _as_in_file(rows: DataRows, index: int) -> dict[str, Any]:
    """Return a row with the file's column names, as it is after a round trip through JSON.

    Values without a JSON type (a date of a Parquet file) become text.
    """
    called = _columns(rows)
    text = json.dumps({called[name]: value for name, value in rows[index].items()}, default=plain)
    return json.loads(text, parse_constant=lambda name: None)  # nor for nan and infinity


def _complete_lines(output: Path, rows: DataRows, resume: bool) -> tuple[int, int]:
    """Return the number of complete lines of an interrupted output, and their length in bytes.

    A kill may have left half a line behind them.
    """
    if output.is_dir():
        raise RunError(f"output {str(output)!r} is a folder; name a file.")
    if not output.exists():
        return 0, 0
    if not resume:
        raise RunError(f"output {str(output)!r} exists. Name another file, or continue it with --resume.")
    complete = good = 0
    with open(output, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            answered = isinstance(content, dict) and ANSWER in content and complete < len(rows)
            if not answered or {k: v for k, v in content.items() if k != ANSWER} != _as_in_file(rows, complete):
                raise RunError(
                    f"output {str(output)!r}: line {complete + 1} is not an answer to row {complete + 1} of the input. "
                    "Name another file; this one was not changed."
                )
            complete, good = complete + 1, good + len(line)
    if not complete and good != output.stat().st_size:
        raise RunError(f"output {str(output)!r} holds no complete answer. Delete it, or name another file.")
    return complete, good
