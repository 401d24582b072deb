"""Measurements as tables of text, (columns, rows)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftengine_bench.compare import Comparison
from ftengine_bench.figures import least_overhead, recovered
from ftengine_bench.layers import OURS, PROVIDERS
from ftengine_bench.report import Case, Report, Row

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
NONE = "–"
CASE = ("layer", "dtype", "rank", "dropout")

LEFT = 5
"""Columns of text in the tables of one measurement, before the figures."""

LEFT_OF_COMPARISON = 6
"""Columns of text in the table of a comparison."""


LEGEND = (
    ("ms", "forward and backward together; percentiles over the rounds"),
    ("over frozen", "the median over rounds of the time over the frozen layer's in that round, not p50 over p50"),
    ("recovered", "of what eager costs above the update's own arithmetic; 0 % is eager, below it slower"),
    ("roofline", "of the speed that the measured peaks allow"),
    ("saved KiB", "from forward to backward, beside x and the parameters"),
    ("of copy", "bandwidth over that of a large copy; above 100 % the operands stayed in a cache"),
    ("random ns", "of a core, for the random bits of an element"),
)
"""What the columns of a measurement are."""


def threads(count: int) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{count} thread{'' if count == 1 else 's'}"


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yield lines that describe the machine of a measurement."""
    machine = report.environment
    if not report.complete:
        yield "incomplete", "the measurement was interrupted"
    yield "device", f"{machine['name']} ({machine['capability']}), {threads(machine['threads'])}"
    if report.settings.get("launch") == "graph":
        yield "launch", "replayed from CUDA graphs, forward and backward one each"
    yield "software", f"torch {machine['torch']}, ftengine {machine['ftengine']}, PEFT {machine['peft'] or 'absent'}"
    yield "kernels", f"{machine['kernels']['backend']}: {machine['kernels']['reason']}"
    if machine["driver"]:
        yield "driver", f"{machine['driver']}, CUDA {machine['cuda']}"
    for peak in report.peaks:
        copy, product = peak["copy_bytes_a_second"] / 1e9, peak["operations_a_second"] / 1e12
        yield f"peak {peak['dtype']}", f"copy {copy:.4g} GB/s, product {product:.3g} TFLOP/s"
    for name, reason in report.settings["left_out"].items():
        yield "left out", f"{name}: {reason}"


def layer_table(report: Report) -> Table:
    """Return a table of all providers and layers, forward and backward together."""
    times, figures = ("p20 ms", "p50 ms", "p80 ms"), ("over frozen", "recovered", "roofline", "peak MiB", "saved KiB")
    rows = [
        (
            *_case(row, " (K,N)" if row.transposed else ""),
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
    return (*CASE, "provider", *times, *figures), rows


def block_table(report: Report) -> Table:
    """Return a table of the providers' times for all layers of a preset's block."""
    blocks: dict[tuple[float | str, ...], dict[str, list[Row]]] = {}
    for row in report.rows:
        if row.phase == "both" and row.layers:
            block = (row.m, row.dtype, row.rank, row.p)
            blocks.setdefault(block, {}).setdefault(row.provider, []).append(row)
    rows = []
    for by_provider in blocks.values():
        layers = by_provider["frozen"]
        block = f"{sum(len(row.layers) for row in layers)} layers, {layers[0].m} tokens"
        overhead, least = over_frozen(by_provider)
        rows += [
            (block, *_case(layers[0])[1:], name, f"{value:.3f}", percent(recovered(name, overhead, least)))
            for name, value in overhead.items()
            if name != "frozen"
        ]
    return ("block", *CASE[1:], "provider", "over frozen", "recovered"), rows


def over_frozen(by_provider: dict[str, list[Row]]) -> tuple[dict[str, float], float]:
    """Return a block's time divided by that of its frozen layers, by provider, and for the lower bound.

    Args:
        by_provider: rows of forward and backward; a provider that lacks one of the layers is left out.
    """
    layers = by_provider["frozen"]
    frozen = {row.layer: len(row.layers) * row.p50 for row in layers}
    total = sum(frozen.values())
    overhead = {
        provider: sum(frozen[row.layer] * row.overhead for row in rows) / total
        for provider, rows in by_provider.items()
        if len(rows) == len(layers)
    }
    return overhead, sum(frozen[row.layer] * least_overhead(row, row.rank, "both") for row in layers) / total


def operator_table(report: Report) -> Table:
    """Return a table of the operators."""
    rows = [
        (
            *_case(row),
            row.operator,
            f"{1e3 * row.p50:.4g}",
            f"{row.bandwidth / 1e9:.4g}",
            percent(row.copy_share),
            NONE if row.random_ns is None else f"{row.random_ns:.2f}",
        )
        for row in report.operators
    ]
    return (*CASE, "operator", "p50 ms", "GB/s", "of copy", "random ns"), rows


def comparison_table(comparisons: Sequence[Comparison], names: Sequence[str]) -> Table:
    """Return a table of overheads by file, with the ratio of each later file to the first."""
    first, *others = names
    columns = (*CASE, "phase", "provider", first, *(column for name in others for column in (name, "ratio")))
    rows = []
    for comparison in comparisons:
        pairs = zip(comparison.overheads[1:], comparison.ratios[1:], strict=True)
        figures = [NONE if figure is None else f"{figure:.3f}" for pair in pairs for figure in pair]
        rows.append(
            (
                *_case(comparison.row),
                comparison.row.phase,
                comparison.row.provider,
                f"{comparison.row.overhead:.3f}",
                *figures,
            )
        )
    return columns, rows


def device_table(reports: Sequence[Report]) -> Table:
    """Return a table of overheads over the frozen layer by device and layer, forward and backward together."""
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    measured = {row.provider for report in reports for row in report.rows}
    others = [name for name in PROVIDERS if name in measured and name not in ("frozen", *OURS)]
    for report in reports:
        machine = report.environment
        device = f"{machine['name']}, {machine['capability']}"
        if machine["device"] == "cpu":
            device += f", {threads(machine['threads'])}"
        layers: dict[tuple[str, ...], dict[str, Row]] = {}
        for row in report.rows:
            if row.phase == "both":
                layers.setdefault(_case(row, " (K,N)" if row.transposed else ""), {})[row.provider] = row
        for case, of in layers.items():
            ours = next((of[name] for name in OURS if name in of), None)
            figures = [NONE if name not in of else f"{of[name].overhead:.2f}" for name in others]
            mine = (NONE, NONE) if ours is None else (f"{ours.overhead:.2f}", percent(ours.recovered))
            rows[(device, *case)] = (f"{1e3 * of['frozen'].p50:.3g}", *figures, *mine)
    return ("device", *CASE, "frozen ms", *others, "ours", "recovered"), [(*key, *of) for key, of in rows.items()]


def markdown(table: Table) -> str:
    columns, rows = table
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ("---",) * len(columns), *rows))


def _case(row: Case, more: str = "") -> tuple[str, ...]:
    return f"{row.m}x{row.k}x{row.n}{more}", row.dtype, str(row.rank), f"{row.p:.3g}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"
