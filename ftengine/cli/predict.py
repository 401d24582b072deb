"""`ftengine predict`: answer the rows of a file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from ftengine.cli.options import (
    PATH,
    json_option,
    precision_option,
    require_one_process,
    trust_code_option,
)
from ftengine.cli.page import print_json
from ftengine.run.progress import announce, listening
from ftengine.text import counted, printable


@click.command()
@click.argument("model", metavar="RUN|RECIPE|MODEL", type=PATH)
@click.option("--input", "source", metavar="FILE", type=PATH, required=True, help="Rows to answer (no labels needed).")
@click.option(
    "--output",
    metavar="FILE",
    type=PATH,
    help="File for the answers: .jsonl, .csv, .tsv or .parquet, vectors also .npy. Default: JSONL to stdout.",
)
@click.option(
    "--resume", is_flag=True, help="Keep the complete lines of an interrupted output and continue after them."
)
@click.option("--base", is_flag=True, help="Answer with the base model instead, for comparison.")
@click.option(
    "--calibrated",
    is_flag=True,
    help="Apply the calibration fitted on the validation split, such as a classifier's temperature.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows at a time (default: evaluation.batch_size, else 128 where text is written and 32 elsewhere).",
)
@precision_option
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the task, e.g. max_new_tokens=40; may be given several times.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", help="Draw N answers a row, by default at temperature 1."
)
@trust_code_option
@json_option
def predict(
    model: str,
    source: str,
    output: str | None,
    resume: bool,
    base: bool,
    calibrated: bool,
    batch_size: int | None,
    precision: str | None,
    options: tuple[str, ...],
    samples: int | None,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Answer the rows of a file with a tuned model, or with a base model before anything is trained.

    The model is a run's folder, a recipe (.yaml) for its base model, or a base model: a folder, a .gguf file, a hub id
    or package://NAME/FILE. Each line of the output is the row with its `prediction`.

    \b
    Examples:
      ftengine predict ./SmolLM2-135M-Instruct --input questions.jsonl
      ftengine predict runs/support --input questions.jsonl --output answers.jsonl --option max_new_tokens=40
    """
    announce(f"opening {model}")
    from ftengine.engine.predict import predict_file, predict_rows
    from ftengine.engine.untrained import load_model
    from ftengine.run.yaml_text import key_and_value

    require_one_process("predict", "writes each answer once")
    if output is None and (resume or as_json):
        raise click.UsageError(f"{'--resume' if resume else '--json'} needs --output FILE.")
    chosen = dict(key_and_value(option, "--option", "max_new_tokens=40") for option in options)
    settings: dict[str, Any] = {"base": base, "calibrated": calibrated, "batch_size": batch_size, "options": chosen}
    settings |= {} if samples is None else {"samples": samples}
    with listening(bars=output is not None) as listener:
        run = load_model(model, listener=listener, trust_code=trust_code, precision=precision)
        if output is None:
            for row in predict_rows(run, source, **settings):
                line = json.dumps(row, ensure_ascii=False, allow_nan=False)
                click.echo(printable(line) if sys.stdout.isatty() else line)
            return
        report = predict_file(run, source, output, resume=resume, **settings)
    if as_json:
        print_json(asdict(report))
    else:
        previous = f" ({report.kept:,} were already there)" if report.kept else ""
        form = f" (with {report.form}, like {source})" if report.form else ""
        click.echo(printable(f"wrote {counted(report.written, 'answer')} to {report.output}{form}{previous}"))
