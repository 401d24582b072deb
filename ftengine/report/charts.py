"""The report's charts of a run: losses, learning rate, trade-offs, and the losses of several runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ftengine.api import Line, LineChart
from ftengine.text import short_place

FEWEST_SMOOTHED = 10
"""A line with fewer points is not smoothed."""

STEP_FIGURES = (
    *("step", "epoch", "loss", "penalty", "learning_rate", "learning_rates", "grad_norm", "examples", "tokens"),
    *("trained_tokens", "computed_tokens", "examples_per_second", "tokens_per_second", "peak_memory_bytes"),
)
"""Keys of every step in metrics.jsonl, which have charts of their own or none."""

Points = Iterable[tuple[float, float]]
"""(step, value); values that are not finite are left out."""


def losses(steps: Points, validation: Points, training: Points, kept: int) -> LineChart:
    """Draw the losses of batches, of the validation split, and of training examples without dropout."""
    raw = _line("loss of the batches", steps, "faint")
    validated, trained = _line("validation", validation), _line("training examples", training)
    mean, width = smoothed(raw.points)
    alike = "Loss on training examples (as many as validation has, at most 256) is measured like validation loss, "
    caption = f"The smoothed line is the mean of {width} neighbouring steps, fewer at the ends. " if mean else ""
    caption += f"{alike}without dropout. " if trained.points else ""
    caption += "A validation loss that rises while the training loss falls is over-fitting."
    return LineChart(
        title="Losses",
        x_label="step",
        y_label="loss",
        lines=_drawable(raw, _line("the same, smoothed", mean, "smooth"), validated, trained),
        mark=(kept, f"kept: step {kept:,}") if validated.points else None,
        caption=caption,
    )


def smoothed(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """Return the running mean of points and its width; ([], 0) for fewer than FEWEST_SMOOTHED points.

    A window is as wide to the left as to the right, and narrower at the ends, so that it does not flatten a slope.
    """
    half, last = max(2, len(points) // 20), len(points) - 1
    if len(points) < FEWEST_SMOOTHED:
        return [], 0
    ys = [y for _, y in points]
    reach = [min(half, i, last - i) for i in range(len(points))]
    means = [(x, fmean(ys[i - r : i + r + 1])) for i, ((x, _), r) in enumerate(zip(points, reach, strict=True))]
    return means, 2 * half + 1


def learning_rate(steps: Points) -> LineChart:
    """Draw the learning rate over training."""
    return LineChart(
        title="Learning rate",
        x_label="step",
        y_label="learning rate",
        lines=_drawable(_line("", steps, "tuned")),
        caption="Learning rate of each step.",
    )


def trade_off(points: Sequence[Mapping[str, Any]]) -> LineChart | None:
    """Draw a regularizer's measurements after training: each number over the first one."""
    keys = [key for key, value in (points[0] if points else {}).items() if isinstance(value, (int, float))]
    if len(keys) < 2 or len(points) < 2:
        return None
    x, *others = keys
    label = x.replace("_", " ")
    lines = [_line(key.replace("_", " "), [(p[x], p[key]) for p in points if p.get(key) is not None]) for key in others]
    return LineChart(
        title=f"Trade-off over {label}",
        x_label=label,
        y_label="loss",
        lines=_drawable(*lines),
        caption=f"Measurements at each {label}.",
    )


def by_source(lines: Sequence[Mapping[str, Any]], prefix: str = "loss/") -> LineChart | None:
    """Draw the smoothed losses of batches by source; None if there is one source."""
    names = dict.fromkeys(key for line in lines for key in line if key.startswith(prefix))
    raw = {
        name.removeprefix(prefix): [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        for name in names
    }
    drawable = _drawable(*(_line(short_place(name), smoothed(points)[0] or points) for name, points in raw.items()))
    if not drawable:
        return None
    caption = "Loss of the batches, on the examples of each source; smoothed as above."
    return LineChart(title="Losses by source", x_label="step", y_label="loss", lines=drawable, caption=caption)


def of_steps(lines: Sequence[Mapping[str, Any]]) -> list[LineChart]:
    """Draw what a task or callback added to the steps' figures: a chart for each that changes, but for times."""
    own = [line for line in lines if "loss" in line]
    names = dict.fromkeys(key for line in own for key in line if "/" not in key and not key.startswith("seconds"))
    charts = []
    for name in (name for name in names if name not in STEP_FIGURES):
        raw = _line("each step", [(line["step"], line[name]) for line in own if line.get(name) is not None], "faint")
        if len({y for _, y in raw.points}) > 1:
            label, mean = name.replace("_", " "), smoothed(raw.points)[0]
            drawable = _drawable(raw, _line("smoothed", mean, "smooth"))
            charts.append(LineChart(title=label.capitalize(), x_label="step", y_label=label, lines=drawable))
    return charts


def together(runs: Iterable[tuple[str, Points]]) -> LineChart | None:
    """Draw the validation losses of several runs, each a name and points; None where none has any."""
    lines = _drawable(*(_line(name, points) for name, points in runs))
    if not lines:
        return None
    return LineChart(title="Validation loss of each run", x_label="step", y_label="validation loss", lines=lines)


def _line(name: str, points: Points, look: Any = "") -> Line:
    return Line(name=name, points=tuple((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)), look=look)


def _drawable(*lines: Line) -> tuple[Line, ...]:
    return tuple(line for line in lines if line.points)
