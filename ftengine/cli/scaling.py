"""Options and output of `ftengine plan --processes N --bandwidth B`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftengine.cli.page import table
from ftengine.errors import InputError
from ftengine.text import duration, number, one_line, percent

if TYPE_CHECKING:
    from rich.console import Console


def network(processes: int | None, bandwidth: str | None, *, measure: bool) -> float | None:
    """Return bytes a second; None without both options (InputError: one is missing, or the step is not timed)."""
    if processes is None and bandwidth is None:
        return None
    if processes is None or bandwidth is None:
        raise InputError("--processes and --bandwidth go together, as in --processes 64 --bandwidth 400Gb/s.")
    if not measure:
        raise InputError("--processes needs the time of a step. Leave --no-measure and --parameters-only out.")
    from ftengine.parallel.scaling import bandwidth_of

    return bandwidth_of(bandwidth)


def show_scaling(out: Console, scaling: dict[str, Any]) -> None:
    """Print the times of a step on 1, 2, 4, … processes, and advice."""
    speed = number(8 * scaling["bandwidth"] / 1e9)
    out.print(f"\nA step on several processes like this one, at {speed} Gb/s (computed):")
    columns = ("processes", "examples", "steps", "compute", "communication", "exposed", "efficiency", "training")
    rows = [
        (
            f"{scale['processes']:,}",
            f"{scale['examples_a_step']:,}",
            f"{scale['steps']:,}",
            *(seconds(scale[f"{part}_seconds"]) for part in ("compute", "communication", "exposed")),
            percent(scale["efficiency"]),
            duration(scale["seconds"]),
        )
        for scale in scaling["scales"]
    ]
    out.print(table(columns, rows))
    for line in scaling["advice"]:
        out.print(one_line(line), soft_wrap=True)


def seconds(value: float) -> str:
    """Return a short time with its unit."""
    return f"{number(value)} s" if value >= 1 else f"{number(1000 * value)} ms"
