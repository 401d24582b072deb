"""Small charts as inline SVG: a line chart and an interval on a scale. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ftengine.api import redact
from ftengine.report.text import number, printable

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, BOTTOM = 62, 14, 46
LETTER = 7.6
"""Average width of a letter of the charts' 14-unit type, to lay out legends."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: for the legend.
        points: (x, y) in the order of x.
        look: CSS class: its colour, dashes and marker ("one" … "six", "faint").
        markers: whether each point gets a marker.
    """

    name: str
    points: Sequence[Point]
    look: str
    markers: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_range: Point | None = None,
    y_range: Point | None = None,
    diagonal: bool = False,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Draw lines over common axes.

    Args:
        title: says what is seen, for those who do not see it.
        series: at least one with a point; points that are not finite are left out.
        x_range, y_range: the axes' ends; by default those of the points.
        diagonal: draw y = x, as a reliability diagram has it.
        mark: an x and its name, drawn as a vertical line.
    """
    known = [Series(s.name, [p for p in s.points if all(map(math.isfinite, p))], s.look, s.markers) for s in series]
    known = [one for one in known if one.points]
    legend, top = _legend(known)
    xs = _ends((p[0] for s in known for p in s.points), x_range)
    ys = _ends((p[1] for s in known for p in s.points), y_range, room=0.05)
    x = _Scale(*xs, LEFT, WIDTH - RIGHT)
    y = _Scale(*ys, HEIGHT - BOTTOM, top)
    parts = [*legend, *_axes(x, y, x_label, y_label)]
    if diagonal:
        parts.append(f'<path class="ideal" d="M{x(xs[0])} {y(ys[0])}L{x(xs[1])} {y(ys[1])}"/>')
    if mark is not None and xs[0] <= mark[0] <= xs[1]:
        at = x(mark[0])
        anchor, shift = ("end", -5) if at > (LEFT + WIDTH) / 2 else ("start", 5)
        parts.append(f'<path class="mark" d="M{at} {y.low}V{y.high}"/>')
        parts.append(f'<text x="{at + shift:.1f}" y="{y.high + 13:.1f}" text-anchor="{anchor}">{_text(mark[1])}</text>')
    for one in known:
        parts += _line(one, x, y)
    return _svg(title, WIDTH, HEIGHT, parts, "chart")


def interval_plot(title: str, figures: Sequence[tuple[str, float, float | None, float | None]], span: Point) -> Markup:
    """Draw values with their intervals on one scale, a line each.

    Args:
        title: says what is seen.
        figures: (look, value, low, high), looks being CSS classes: "base" a ring, "tuned" a diamond, "only" a dot.
        span: the scale's ends.
    """
    width, row = 220, 16
    height = row * len(figures) + 4
    x = _Scale(*span, 6, width - 6)
    parts = [f'<path class="track" d="M{x.low} 1V{height - 1}M{x.high} 1V{height - 1}"/>']
    if span[0] <= 0 <= span[1] and span != (0.0, 1.0):
        parts.append(f'<path class="zero" d="M{x(0)} 0V{height}"/>')
    for i, (look, value, low, high) in enumerate(figures):
        at = 2 + row * (i + 0.5)
        if low is not None and high is not None:
            parts.append(f'<path class="track" d="M{x.low} {at}H{x.high}"/>')
            parts.append(
                f'<path class="whisker {look}" d="M{x(low)} {at}H{x(high)}M{x(low)} {at - 4}v8M{x(high)} {at - 4}v8"/>'
            )
        parts.append(_marker(look, x(value), at, 3.2))
    return _svg(title, width, height, parts, "interval")


def span_of(values: Iterable[float | None]) -> Point:
    """Return a scale for intervals: 0 to 1 where all lie there, else their range."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if all(0 <= value <= 1 for value in known):
        return 0.0, 1.0
    low, high = min(known), max(known)
    pad = (high - low or abs(high) or 1.0) * 0.05
    return low - pad, high + pad


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within [low, high], at most so many."""
    if not high > low:
        return [low]
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if abs(v) < step / 1e6 else v for v in (step * i for i in range(first, first + most)) if v <= high]


class _Scale:
    """A linear map from data to the drawing."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.ends, self.low, self.high = (low, high), start, end

    def __call__(self, value: float) -> float:
        low, high = self.ends
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.low + min(1.05, max(-0.05, share)) * (self.high - self.low), 1)


def _ends(values: Iterable[float], given: Point | None, room: float = 0.0) -> Point:
    if given is not None:
        return given
    known = list(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    pad = (high - low) * room or (0.5 if low == high else 0.0)
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in ticks(*y.ends):
        parts.append(f'<path class="grid" d="M{x.low} {y(value)}H{x.high}"/>')
        parts.append(f'<text x="{x.low - 7}" y="{y(value) + 4.5}" text-anchor="end">{_tick(value)}</text>')
    for value in ticks(*x.ends):
        parts.append(f'<text x="{x(value)}" y="{y.low + 18}" text-anchor="middle">{_tick(value)}</text>')
    parts.append(f'<path class="axis" d="M{x.low} {y.low}H{x.high}"/>')
    middle = (x.low + x.high) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" class="label">{_text(x_label)}</text>')
    center = (y.low + y.high) / 2
    parts.append(
        f'<text transform="translate(14 {center}) rotate(-90)" text-anchor="middle" class="label">'
        f"{_text(y_label)}</text>"
    )
    return parts


def _legend(series: Sequence[Series]) -> tuple[list[str], float]:
    """Return the legend's parts and the height at which the plot may begin."""
    named = [one for one in series if one.name]
    x, y, parts = float(LEFT), 14.0, []
    for one in named:
        width = 34 + LETTER * len(one.name)
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + 20
        parts.append(f'<path class="line {one.look}" d="M{x} {y - 4}h22"/>')
        if one.markers:
            parts.append(_marker(one.look, x + 11, y - 4, 3.5))
        parts.append(f'<text x="{x + 28}" y="{y}">{_text(one.name)}</text>')
        x += width + 12
    return parts, (y + 14 if named else 14.0)


def _line(series: Series, x: _Scale, y: _Scale) -> list[str]:
    places = [(x(px), y(py)) for px, py in series.points]
    parts = []
    if len(places) > 1:
        parts.append(f'<path class="line {series.look}" d="M{"L".join(f"{a} {b}" for a, b in places)}"/>')
    if series.markers or len(places) == 1:
        parts += [_marker(series.look, a, b, 3.5) for a, b in places]
    return parts


def _marker(look: str, x: float, y: float, r: float) -> str:
    """Return a marker whose shape tells it from the others where colours do not."""
    if look in ("tuned", "two"):
        r += 1  # a diamond looks smaller than a circle of its width
        return f'<path class="marker {look}" d="M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z"/>'
    if look in ("three", "six"):
        return f'<rect class="marker {look}" x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>'
    return f'<circle class="marker {look}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'


def _tick(value: float) -> str:
    text = number(float(f"{value:.3g}")) if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}".replace("e-0", "e-")
    return text.replace("-", "−")


def _text(text: str) -> str:
    return str(escape(printable(redact(text), keep="")))


def _svg(title: str, width: float, height: float, parts: Sequence[str], look: str) -> Markup:
    # Everything in parts is a number, a literal of this module, or went through `_text`.
    return Markup(
        f'<svg class="{look}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{_text(title)}</title>{"".join(parts)}</svg>'
    )
