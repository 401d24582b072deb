"""The report's charts: what is drawn of a run, and the table of numbers behind each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ftengine.report.files import RunFiles
from ftengine.report.findings.quality import calibration_details
from ftengine.report.svg import Point, Series, interval_plot, line_chart, span_of
from ftengine.report.text import number
from ftengine.report.words import digits, interval, plain

MOST_POINTS = 200
"""Points of a line; more are averaged in groups of neighbours, which a chart of 480 units cannot tell apart."""

MOST_ROWS = 40
"""Rows of the table of numbers behind a chart."""

LOOKS = ("one", "two", "three", "four", "five", "six")
"""CSS classes of the lines of several runs; more cannot be told apart."""


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption and its numbers.

    Args:
        svg: the drawing.
        caption: one sentence under it.
        columns, rows: the numbers.
    """

    svg: Markup
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[list[Point], int]:
    """Return at most so many points, each the mean of neighbours, and how many neighbours."""
    size = -(-len(points) // most) if points else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], fmean(y for _, y in group)) for group in groups], size


def curves(files: RunFiles) -> list[Chart]:
    """Draw the losses and the learning rate over training."""
    steps = files.steps
    if not steps:
        return []
    return [_losses(files), _rates(files)]


def _losses(files: RunFiles) -> Chart:
    raw = [(float(line["step"]), line["loss"]) for line in files.steps]
    points, size = thinned(raw)
    known = [(float(v["step"]), v["training_loss"]) for v in files.validations if v.get("training_loss") is not None]
    new = [(float(v["step"]), v["validation_loss"]) for v in files.validations]
    series = [
        Series("loss of the batches", points, "faint"),
        Series("training examples", known, "one", markers=True),
        Series("validation", new, "two", markers=True),
    ]
    kept = files.kept_step
    end = new[-1][1] if new else points[-1][1]
    title = f"Losses over {len(raw)} steps: batches from {number(raw[0][1])} to {number(raw[-1][1])}"
    title += f", validation from {number(new[0][1])} to {number(end)}, {_lowest(new, 'step')}." if new else "."
    svg = line_chart(title, series, x_label="step", y_label="loss", mark=(kept, f"kept: step {kept}") if new else None)
    alike = "Loss on training examples (as many as validation has, 256 at most) and validation loss are measured alike"
    caption = f"{alike}, without dropout. " if known else ""
    caption += "A validation loss that rises while "
    caption += "the training loss falls is over-fitting."
    if size > 1:
        caption += f" Each point of the batches' line is the mean of {size} steps."
    table, _ = thinned(raw, MOST_ROWS)
    by_step = {step: (None, None) for step, _ in table} | {step: (None, None) for step, _ in new}
    losses, seen, held = dict(table), dict(known), dict(new)
    rows = [
        (f"{step:,.0f}", *(number(column.get(step)) for column in (losses, seen, held))) for step in sorted(by_step)
    ]
    return Chart(svg, caption, ("step", "batches", "training examples", "validation"), rows)


def _rates(files: RunFiles) -> Chart:
    raw = [(float(line["step"]), line["learning_rate"]) for line in files.steps]
    points, _ = thinned(raw)
    peak = max(rate for _, rate in raw)
    power = math.floor(math.log10(peak)) if peak > 0 else 0
    unit, label = (10.0**power, f"learning rate × 10{superscript(power)}") if power < -1 else (1.0, "learning rate")
    svg = line_chart(
        f"The learning rate over {len(raw)} steps; its peak is {number(peak)}.",
        [Series("", [(step, rate / unit) for step, rate in points], "two")],
        x_label="step",
        y_label=label,
        y_range=(0.0, peak / unit * 1.05 or 1.0),
    )
    table, _ = thinned(raw, MOST_ROWS)
    rows = [(f"{step:,.0f}", digits(rate / unit, 3)) for step, rate in table]
    return Chart(svg, "Learning rate as the schedule had it.", ("step", label), rows)


def superscript(value: int) -> str:
    """Return an exponent in small raised digits."""
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def reliability(files: RunFiles) -> Chart | None:
    """Draw stated confidence against accuracy for base and tuned, and for tuned after its temperature."""
    sides = {
        "base": calibration_details(files.evaluation, "base"),
        "tuned": calibration_details(files.evaluation, "tuned"),
    }
    series, rows = [], []
    for name, look, details in (
        ("base", "one", sides["base"]),
        ("tuned", "two", sides["tuned"]),
        ("tuned, with temperature", "three", tempered(sides["tuned"])),
    ):
        bins = filled(details)
        if bins:
            series.append(Series(name, [(b["confidence"], b["accuracy"]) for b in bins], look, markers=True))
            rows += [(name, number(b["confidence"]), number(b["accuracy"]), f"{b['n']:,}") for b in bins]
    if not series:
        return None
    svg = line_chart(
        "Reliability diagram: accuracy against stated confidence. " + " ".join(_furthest(s) for s in series),
        series,
        x_label="stated confidence",
        y_label="accuracy",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=True,
    )
    caption = "On the dotted diagonal, stated confidence is what it claims. Below it, the model is too sure of itself."
    return Chart(svg, caption, ("model", "confidence", "accuracy", "examples"), rows)


def tempered(details: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the reliability bins after temperature scaling, under whichever name they stand."""
    for name in ("after", "after_temperature", "scaled", "bins_after_temperature"):
        found = (details or {}).get(name)
        if isinstance(found, dict) and found.get("bins"):
            return found
        if isinstance(found, list) and found:
            return {"bins": found}
    return None


def filled(details: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the bins with examples in them."""
    return [b for b in (details or {}).get("bins", []) if b.get("n") and b.get("accuracy") is not None]


def together(runs: Sequence[tuple[str, RunFiles]]) -> Chart | None:
    """Draw the validation losses of several runs over their steps; the numbers have all runs."""
    known = [(name, [(float(v["step"]), v["validation_loss"]) for v in files.validations]) for name, files in runs]
    known = [(name, points) for name, points in known if points]
    if not known:
        return None
    drawn = known[: len(LOOKS)]
    series = [Series(name[:40], points, look, markers=True) for (name, points), look in zip(drawn, LOOKS, strict=False)]
    told = [f"{name} {_lowest(points, 'step')}, last {number(points[-1][1])}" for name, points in drawn]
    svg = line_chart(f"Validation losses: {'; '.join(told)}.", series, x_label="step", y_label="validation loss")
    caption = "Validation loss of each run."
    if len(drawn) < len(known):
        caption = f"Validation losses. The first {len(drawn)} of {len(known)} runs are drawn; the numbers have all."
    rows = [(name, f"{step:,.0f}", number(loss)) for name, points in known for step, loss in points]
    return Chart(svg, caption, ("run", "step", "validation loss"), rows)


def trade_off(points: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw the curve that a regularizer measured after training, e.g. losses against the share of tuned weights."""
    keys = [key for key, value in (points[0] if points else {}).items() if isinstance(value, (int, float))]
    if len(keys) < 2 or len(points) < 2:
        return None
    x, *others = keys
    series = [
        Series(
            key.replace("_", " "), [(p[x], p[key]) for p in points if p.get(key) is not None], LOOKS[i], markers=True
        )
        for i, key in enumerate(others[: len(LOOKS)])
    ]
    label = x.replace("_", " ")
    told = [f"{one.name} {_lowest(one.points, label)}" for one in series if one.points]
    svg = line_chart(f"Trade-off over {label}: {'; '.join(told)}.", series, x_label=label, y_label="loss")
    rows = [[number(point.get(key)) for key in keys] for point in points]
    return Chart(svg, f"What was measured at each {label}.", [key.replace("_", " ") for key in keys], rows)


def _lowest(points: Sequence[Point], label: str) -> str:
    """Say where a line is lowest, for those who do not see it."""
    known = [point for point in points if math.isfinite(point[1])]
    if not known:
        return "without a finite value"
    x, y = min(known, key=lambda point: point[1])
    return f"lowest {number(y)} at {label} {number(x)}"


def _furthest(series: Series) -> str:
    """Say where a model's accuracy is furthest from its stated confidence."""
    confidence, accuracy = max(series.points, key=lambda point: abs(point[1] - point[0]))
    return f"{series.name}: furthest apart at confidence {digits(confidence, 2)}, accuracy {digits(accuracy, 2)}."


def pair_plot(metric: str, base: Mapping[str, Any] | None, tuned: Mapping[str, Any] | None) -> Markup:
    """Draw base and tuned with their intervals on one scale."""
    sides = [(look, f) for look, f in (("base", base), ("tuned", tuned)) if f and f.get("value") is not None]
    if not sides:
        return Markup("")
    span = span_of(value for _, f in sides for value in (f["value"], f.get("low"), f.get("high")))
    title = f"{metric}: " + ", ".join(f"{look} {plain(f)} ({interval(f) or 'no interval'})" for look, f in sides)
    return interval_plot(title, [(look, f["value"], f.get("low"), f.get("high")) for look, f in sides], span)
