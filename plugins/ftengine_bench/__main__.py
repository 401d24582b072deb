"""`python -m ftengine_bench` is `ftengine bench` for machines that have only torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftengine.errors import FtengineError, InputError
from ftengine_bench import experts as of_experts
from ftengine_bench import tables
from ftengine_bench.compare import check_slower, compare, noise, parse_share
from ftengine_bench.kernels import measure_kernels
from ftengine_bench.options import COMPARE, EXPERTS, KERNELS
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


def kernels(json: str | None, plot: str | None, **options: Any) -> None:
    """Measure the kernels, print tables, and write the requested files."""
    if json:
        check_writable(Path(json))
    if plot:
        check_plot(Path(plot))
    settings = Settings.parse(**options)
    report = measure_kernels(settings, _tell, lambda report: report.write(Path(json)) if json else None)
    if plot:
        draw(report, Path(plot))
    for name, text in tables.facts(report):
        print(f"{name:14} {text}")
    for table in (tables.layer_table(report), tables.block_table(report), tables.operator_table(report)):
        if table[1]:
            print()
            print(aligned(table, tables.LEFT))
    print()
    for name, text in tables.LEGEND:
        print(f"{name:14} {text}")
    if disturbed := noise(report):
        print(f"warning: {disturbed}", file=sys.stderr)


def experts(json: str | None, **options: Any) -> None:
    """Measure a layer of experts, print a table, and write the requested file."""
    if json:
        check_writable(Path(json))
    found = of_experts.measure_experts(**options)
    if json:
        of_experts.write(found, Path(json))
    print(
        " ".join(f"{name} {found[name]}" for name in ("width", "inner", "experts", "chosen", "tokens", "rank", "dtype"))
    )
    print()
    print(aligned(of_experts.table(found), 1))
    for name, reason in found["left_out"].items():
        print(f"left out: {name}, {reason}")


def comparison(files: Sequence[str], by: str, fail_over: str | None) -> None:
    """Print a comparison; fail if a measurement became slower."""
    allowed = None if fail_over is None else parse_share(fail_over)
    if by not in ("file", "device"):
        raise InputError(f"--by {by!r}: write file or device.")
    reports = [Report.read(Path(file)) for file in files]
    if by == "device":
        print(tables.markdown(tables.device_table(reports)))
        return
    comparisons, names = compare(reports), [printable(file) for file in files]
    print(aligned(tables.comparison_table(comparisons, names), tables.LEFT_OF_COMPARISON))
    for name, report in zip(names, reports, strict=True):
        disturbed = noise(report)
        if disturbed:
            print(f"warning: {name}: {disturbed}", file=sys.stderr)
    if allowed is not None:
        check_slower(comparisons, allowed)


def _tell(name: str, done: int, total: int) -> None:
    print(f"{name}: {done}/{total}", file=sys.stderr, flush=True)


def aligned(table: tables.Table, left: int) -> str:
    """Return a table as text, with the first columns left-aligned and the figures right-aligned."""
    columns, rows = table
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def printable(text: str) -> str:
    """Return text with control characters of terminals escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ftengine_bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, command, options, summary in (
        ("kernels", kernels, KERNELS, "time low-rank layers against the frozen layer, PyTorch and PEFT"),
        ("experts", experts, EXPERTS, "time a layer of experts with low-rank updates"),
        ("compare", comparison, COMPARE, "compare files that --json wrote with the first of them"),
    ):
        parser_of = commands.add_parser(name, help=summary)
        parser_of.set_defaults(command=command)
        for flag, (metavar, default, text) in options.items():
            action, text = "append" if isinstance(default, list) else "store", text.replace("%", "%%")
            parser_of.add_argument(flag, metavar=metavar, default=default, action=action, help=text)
        if command is comparison:
            parser_of.add_argument("files", nargs="+", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
