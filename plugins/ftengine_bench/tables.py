"""Measurements as tables of text: (columns, rows). Whoever prints decides how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftengine_bench.compare import Comparison
from ftengine_bench.report import Report
from ftengine_bench.summary import blocks

Cells = list[tuple[str, ...]]
Table = tuple[tuple[str, ...], Cells]
NONE = "–"


def facts(report: Report) -> list[tuple[str, str]]:
    """Return what a measurement ran on, in a few lines."""
    machine = report.environment
    lines = [] if report.complete else [("incomplete", "the measurement was interrupted")]
    lines += [
        ("device", f"{machine['name']} ({machine['capability']}), {machine['threads']} threads"),
        ("software", f"torch {machine['torch']}, ftengine {machine['ftengine']}, PEFT {machine['peft'] or 'absent'}"),
        ("kernels", f"{machine['kernels']['backend']}: {machine['kernels']['reason']}"),
    ]
    if machine["driver"]:
        lines.append(("driver", f"{machine['driver']}, CUDA {machine['cuda']}"))
    lines += [
        (
            f"peak {peak['dtype']}",
            f"copy {peak['copy_bytes_a_second'] / 1e9:.4g} GB/s, "
            f"product {peak['operations_a_second'] / 1e12:.3g} TFLOP/s",
        )
        for peak in report.peaks
    ]
    lines += [("left out", f"{name}: {reason}") for name, reason in report.settings["left_out"].items()]
    return lines


def layer_table(report: Report) -> Table:
    """Return every provider on every layer, forward and backward together; the JSON has the phases."""
    times, figures = ("p20 ms", "p50 ms", "p80 ms"), ("over frozen", "recovered", "roofline", "peak MiB", "saved KiB")
    columns = ("layer", "dtype", "rank", "dropout", "provider", *times, *figures)
    rows: Cells = [
        (
            *_layer(vars(row), " (K,N)" if row.transposed else ""),
            row.provider,
            *(f"{1e3 * value:.4g}" for value in (row.p20, row.p50, row.p80)),
            f"{row.overhead:.3f}",
            percent(row.recovered),
            percent(row.roofline_share),
            f"{row.peak_bytes / 2**20:.1f}",
            f"{row.saved_bytes / 2**10:.1f}",
        )
        for row in report.rows
        if row.phase == "both"
    ]
    return columns, rows


def block_table(report: Report) -> Table:
    """Return every provider on all layers of a block."""
    rows: Cells = [
        (
            f"{block.layers} layers, {block.m} tokens",
            block.dtype,
            str(block.rank),
            f"{block.p:.3g}",
            block.provider,
            f"{block.overhead:.3f}",
            percent(block.recovered),
        )
        for block in blocks(report.rows)
        if block.provider != "frozen"
    ]
    return ("block", "dtype", "rank", "dropout", "provider", "over frozen", "recovered"), rows


def operator_table(report: Report) -> Table:
    """Return each operator alone."""
    columns = ("layer", "dtype", "rank", "dropout", "operator", "p50 ms", "GB/s", "of copy", "random ns")
    rows: Cells = [
        (
            *_layer(row),
            row["operator"],
            f"{1e3 * row['p50']:.4g}",
            f"{row['bandwidth'] / 1e9:.4g}",
            percent(row["copy_share"]),
            NONE if row["random_ns"] is None else f"{row['random_ns']:.2f}",
        )
        for row in report.operators
    ]
    return columns, rows


def comparison_table(comparisons: Sequence[Comparison], names: Sequence[str]) -> Table:
    """Return overheads by file, and for each later file the ratio to the first."""
    first, *others = names
    columns = ["layer", "dtype", "rank", "dropout", "phase", "provider", first]
    for name in others:
        columns += [name, "ratio"]
    rows: Cells = []
    for comparison in comparisons:
        row = comparison.row
        cells = [*_layer(vars(row)), row.phase, row.provider, f"{row.overhead:.3f}"]
        for overhead, ratio in zip(comparison.overheads[1:], comparison.ratios[1:], strict=True):
            cells += [NONE, NONE] if overhead is None else [f"{overhead:.3f}", f"{ratio:.3f}"]
        rows.append(tuple(cells))
    return tuple(columns), rows


def _layer(row: Mapping[str, Any], more: str = "") -> tuple[str, ...]:
    return f"{row['m']}x{row['k']}x{row['n']}{more}", row["dtype"], str(row["rank"]), f"{row['p']:.3g}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


LEFT = 5
"""Columns of text in the tables of one measurement, before the figures."""

LEFT_OF_COMPARISON = 6
"""Columns of text in the table of a comparison."""
