"""`ftengine lm-eval`: the harness on a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftengine_lm_eval.figures import Benchmarks


@click.command("lm-eval")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--tasks", required=True, metavar="LIST", help="Tasks, groups, task files and folders of them, with commas between."
)
@click.option("--limit", type=int, help="Most examples of each task, its first; by default all.")
@click.option(
    "--num-fewshot",
    type=int,
    help="Solved examples in each prompt; by default the task's own. A task that sets 0 keeps 0.",
)
@click.option("--batch-size", type=int, default=8, show_default=True, help="Examples that the model reads together.")
@click.option("--max-length", type=int, help="Longest input in tokens; by default the model's own.")
@click.option("--apply-chat-template", is_flag=True, help="Put each prompt into the tokenizer's chat template.")
@click.option("--seed", type=int, default=1234, show_default=True, help="Of solved examples and sampled answers.")
@click.option("--trust-code", is_flag=True, help="Let the run load its model by Python code that its recipe names.")
@click.option("--json", "as_json", is_flag=True, help="Print what lm_eval.json holds to stdout.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, and other libraries' warnings.")
def lm_eval(run_folder: Path, tasks: str, trust_code: bool, as_json: bool, **options: Any) -> None:
    """Run tasks of lm-evaluation-harness on a run's base and tuned model.

    The figures are written to lm_eval.json in RUN, each example's to lm_eval.parquet, and the run is judged again with
    them: its verdict.json and report.html are new.

    \b
    Examples:
      ftengine lm-eval runs/support --tasks arc_easy,hellaswag --limit 200
      ftengine lm-eval runs/support --tasks tasks/capitals.yaml --num-fewshot 2
    """
    from pydantic import ValidationError

    from ftengine import load_run
    from ftengine.errors import InputError
    from ftengine_lm_eval.harness import measure
    from ftengine_lm_eval.options import Options

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        asked = Options(tasks=names, **options)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise InputError(f"--{key.replace('_', '-')} {first['input']!r}: {first['msg']}.") from None
    run = load_run(run_folder, trust_code=trust_code)
    found = measure(run, asked)
    verdict = run.conclude()
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    show(found)
    for finding in verdict.findings:
        if finding.source == "benchmarks":
            click.echo(f"\n{finding.text}")
    click.echo(f"\nwritten: {run.path / 'lm_eval.json'}; the run is judged again: verdict.json and report.html are new")


def show(found: Benchmarks) -> None:
    """Print a row each metric."""
    from rich.console import Console
    from rich.table import Table

    from ftengine.text import interval, plain

    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("task", "metric", "examples", "base", "tuned", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task, one in found.tasks.items():
        for name, metric in one.metrics.items():
            sides = (plain(metric.base), plain(metric.tuned), plain(metric.difference, sign=True))
            table.add_row(task, name, f"{one.examples:,}", *sides, interval(metric.difference, sign=True))
    Console().print(table)
