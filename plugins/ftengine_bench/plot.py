"""A bar chart of overheads, by shape and provider."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ftengine.errors import InputError
from ftengine_bench.report import Report, Row, check_writable

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Check before measuring that a plot can be drawn and written.

    Raises:
        InputError: matplotlib is missing, the suffix is unknown, or the path is not writable.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}.")
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib, which is not installed: pip install matplotlib.")
    check_writable(path)


def draw(report: Report, path: Path) -> None:
    """Draw forward and backward times relative to the frozen layer's, with a panel per dtype, rank and dropout."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int, float], list[Row]] = {}
    for row in report.rows:
        if row.phase == "both" and row.provider != "frozen":
            panels.setdefault((row.dtype, row.rank, row.p), []).append(row)
    figure = Figure(figsize=(10, 1 + 2.5 * len(panels)), layout="constrained")
    for axes, ((dtype, rank, p), rows) in zip(
        figure.subplots(max(1, len(panels)), squeeze=False)[:, 0], panels.items(), strict=False
    ):
        layers = list(dict.fromkeys(f"{row.m}x{row.k}x{row.n}" for row in rows))
        providers = list(dict.fromkeys(row.provider for row in rows))
        width = 0.8 / len(providers)
        for i, provider in enumerate(providers):
            own = [row for row in rows if row.provider == provider]
            places = [layers.index(f"{row.m}x{row.k}x{row.n}") + (i + 0.5) * width - 0.4 for row in own]
            axes.bar(places, [row.overhead for row in own], width, label=provider)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(layers)), layers)
        axes.set_ylabel("time / frozen layer")
        axes.set_title(f"{dtype}, rank {rank}, dropout {p:.3g}", fontsize="medium")
        axes.legend(ncols=len(providers), fontsize="small")
    figure.suptitle(f"forward and backward on {report.environment['name']}")
    figure.savefig(path)
