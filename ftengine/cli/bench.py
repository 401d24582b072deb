"""`ftengine bench`: what the low-rank kernels cost, and whether that became more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftengine.cli.group import Suggesting
from ftengine.cli.options import debug_option
from ftengine.cli.page import facts, page, table
from ftengine.cli.progress import listening
from ftengine.report.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ftengine.bench.report import Report
    from ftengine.bench.tables import Table


@click.group(cls=Suggesting)
@debug_option
def bench() -> None:
    """Measure the low-rank kernels, and compare measurements."""


@bench.command()
@click.option(
    "--preset", metavar="NAME", help="Layers of a model's block: smollm2-135m (default), llama3-8b, bert-base or gpt2."
)
@click.option(
    "--shape",
    "shapes",
    metavar="MxKxN",
    multiple=True,
    help="A layer by tokens, inputs and outputs, e.g. 512x2048x2048; may be given several times.",
)
@click.option("--tokens", metavar="LIST", default="512", show_default=True, help="Tokens for the preset's layers.")
@click.option("--ranks", metavar="LIST", default="8,16,64", show_default=True, help="Ranks, separated by commas.")
@click.option("--dropout", metavar="LIST", default="0,0.05", show_default=True, help="Dropout probabilities.")
@click.option(
    "--dtypes",
    metavar="LIST",
    default="float32,bfloat16",
    show_default=True,
    help="Of inputs and frozen weights: float32, bfloat16, and float16 on a GPU.",
)
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--providers",
    metavar="LIST",
    default="auto",
    show_default=True,
    help="What to time: frozen, eager, peft, torch-compile, reference, compiled; auto is what is there.",
)
@click.option(
    "--instruction-set",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Of the compiled CPU kernels, e.g. avx2; auto is the best that the processor has.",
)
@click.option(
    "--seconds",
    type=float,
    default=0.5,
    show_default=True,
    help="Time for each provider of a layer, and for each operator.",
)
@click.option("--json", metavar="FILE", type=click.Path(path_type=Path), help="Write everything that was measured.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the overheads (.png, .svg or .pdf)."
)
@debug_option
def kernels(json: Path | None, plot: Path | None, **options: Any) -> None:
    """Time low-rank layers against the frozen layer, PyTorch and PEFT, and each operator alone.

    \b
    Example:
      ftengine bench kernels --json before.json
    """
    from ftengine.bench import tables
    from ftengine.bench.kernels import measure_kernels
    from ftengine.bench.plot import check_plot, draw
    from ftengine.bench.report import check_writable
    from ftengine.bench.settings import Settings

    settings = Settings.parse(**options)
    if json:
        check_writable(json)
    if plot:
        check_plot(plot)

    def keep(report: Report) -> None:
        if json:
            report.write(json)

    with listening() as listener:
        report = measure_kernels(settings, listener, keep)
    if plot:
        draw(report, plot)
    out = page()
    out.print(facts(tables.facts(report)))
    for found in (tables.layer_table(report), tables.block_table(report), tables.operator_table(report)):
        if found[1]:
            out.print()
            _print(out, found, tables.LEFT)


@bench.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--fail-over",
    metavar="PERCENT",
    help="Exit with 1 if a row of the compiled kernels is slower than in the first file by more, e.g. 5%.",
)
@debug_option
def compare(files: tuple[Path, ...], fail_over: str | None) -> None:
    """Compare measurements with the first of them, row by row.

    Compared is the time over the frozen layer of the same run, so that a slower machine changes little.

    \b
    Example:
      ftengine bench compare before.json after.json --fail-over 5%
    """
    from ftengine.bench import tables
    from ftengine.bench.compare import check_slower, noise, parse_share
    from ftengine.bench.compare import compare as compare_reports
    from ftengine.bench.report import Report

    allowed = None if fail_over is None else parse_share(fail_over)
    reports = [Report.read(file) for file in files]
    found = compare_reports(reports)
    _print(page(), tables.comparison_table(found, [str(file) for file in files]), tables.LEFT_OF_COMPARISON)
    for file, report in zip(files, reports, strict=True):
        disturbed = noise(report)
        if disturbed:
            click.echo(f"warning: {printable(str(file))}: {disturbed}", err=True)
    if allowed is not None:
        check_slower(found, allowed)


def _print(out: Console, found: Table, left: int) -> None:
    columns, rows = found
    out.print(table(columns, rows, left=left))
