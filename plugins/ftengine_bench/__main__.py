"""`python -m ftengine_bench` is `ftengine bench` for a machine with torch and nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ftengine.errors import FtengineError
from ftengine_bench import tables
from ftengine_bench.compare import check_slower, compare, noise, parse_share
from ftengine_bench.kernels import measure_kernels
from ftengine_bench.options import FAIL_OVER_HELP, JSON_HELP, OPTIONS, PLOT_HELP
from ftengine_bench.plot import check_plot, draw
from ftengine_bench.report import Report, check_writable
from ftengine_bench.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        command(**options)
    except FtengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130  # what shells report: 128 + SIGINT
    return 0


def kernels(json: Path | None, plot: Path | None, **options: object) -> None:
    """Measure, print, and write what is asked for."""
    if json:
        check_writable(json)
    if plot:
        check_plot(plot)
    settings = Settings.parse(**options)
    report = measure_kernels(settings, _tell, lambda report: report.write(json) if json else None)
    if plot:
        draw(report, plot)
    for name, text in tables.facts(report):
        print(f"{name:14} {text}")
    for table in (tables.layer_table(report), tables.block_table(report), tables.operator_table(report)):
        if table[1]:
            print()
            print(aligned(table, tables.LEFT))


def comparison(files: list[Path], fail_over: str | None) -> None:
    """Print a comparison; fail where one became slower."""
    allowed = None if fail_over is None else parse_share(fail_over)
    reports = [Report.read(file) for file in files]
    found, names = compare(reports), [printable(str(file)) for file in files]
    print(aligned(tables.comparison_table(found, names), tables.LEFT_OF_COMPARISON))
    for name, report in zip(names, reports, strict=True):
        disturbed = noise(report)
        if disturbed:
            print(f"warning: {name}: {disturbed}", file=sys.stderr)
    if allowed is not None:
        check_slower(found, allowed)


def _tell(name: str, done: int, total: int) -> None:
    print(f"{name}: {done}/{total}", file=sys.stderr, flush=True)


def aligned(table: tables.Table, left: int) -> str:
    """Return a table as text, its first columns to the left and figures to the right."""
    columns, rows = table
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def printable(text: str) -> str:
    """Return text with whatever could steer a terminal escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ftengine_bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("kernels", help="time low-rank layers against the frozen layer, PyTorch and PEFT")
    measuring.set_defaults(command=kernels)
    for name, (flag, metavar, default, text) in OPTIONS.items():
        kind, action = (float if isinstance(default, float) else str), "append" if isinstance(default, list) else None
        measuring.add_argument(
            flag, dest=name, metavar=metavar, default=default, type=kind, action=action or "store", help=text
        )
    measuring.add_argument("--json", metavar="FILE", type=Path, help=JSON_HELP)
    measuring.add_argument("--plot", metavar="FILE", type=Path, help=PLOT_HELP)
    comparing = commands.add_parser("compare", help="compare files that --json wrote with the first of them")
    comparing.set_defaults(command=comparison)
    comparing.add_argument("files", nargs="+", type=Path)
    comparing.add_argument("--fail-over", metavar="PERCENT", help=FAIL_OVER_HELP.replace("%", "%%"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
