"""Line charts by matplotlib, as SVG with colours and type of the page's style sheet.

matplotlib draws on our own renderer, which writes paths and texts with presentation attributes. matplotlib's SVG has
styles, which the page's Content-Security-Policy forbids, and ids, which would not be unique on a page of charts.
"""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ftengine.api import Line, LineChart
from ftengine.text import printable, redact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 440, 290
"""Size of a chart in units; a unit is 1 pixel on a wide screen, and 0.8 on a phone 390 pixels wide."""
MARGIN = 3
"""Margin of a chart, in units."""
TYPE = 13
"""Size of the type in units; `svg text` in report.css has the same."""

MOST_LINES = 6
"""Lines drawn in a chart; more could not be distinguished."""
MOST_MARKERS = 40
"""A line of more points has no markers, as they would overlap."""

LOOKS: dict[str, tuple[tuple[int, ...], str, bool]] = {
    "tuned": ((), "D", True),
    "base": ((7, 3), "o", False),
    "third": ((2, 2), "s", False),
    "fourth": ((9, 3, 2, 3), "^", True),
    "fifth": ((12, 4), "v", False),
    "sixth": ((4, 2), "P", True),
}
"""Looks of lines: colour (a variable of report.css), dashes, marker, and whether the marker is filled."""

COLOURS = {f"#0000{i:02x}": f"var(--{name})" for i, name in enumerate(("quiet", "line", "paper", *LOOKS), 1)}
"""Colours that stand for the style sheet's variables while matplotlib draws."""
QUIET, GRID, PAPER, *_ = COLOURS

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": TYPE,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


def line_svg(chart: LineChart, title: str) -> Markup:
    """Draw the first MOST_LINES lines; `title` describes the chart for screen readers."""
    import matplotlib  # imported here so that --help is quick
    from matplotlib.figure import Figure

    from ftengine.report.svg import Renderer

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib's font only measures texts here
        matplotlib.rcdefaults()  # ignore the user's matplotlibrc
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        figure.patch.set_visible(False)
        _fill(figure, chart)
        renderer = Renderer(WIDTH, HEIGHT, COLOURS)
        _set_margins(figure, renderer)
        figure.draw(renderer)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{renderer.svg}</svg>'
    )


def safe(text: str, most: float = math.inf) -> str:
    """Return text from data on one line, redacted, without control characters, at most `most` letters wide."""
    text = printable(redact(" ".join(text.split())), keep="")
    if _letters(text) <= most:
        return text
    return text[: next(i for i in range(len(text), -1, -1) if _letters(text[:i]) < most)] + "…"


def _fill(figure: Figure, chart: LineChart) -> None:
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    lines = chart.lines[:MOST_LINES]
    _axes(axes, chart, [point for line in lines for point in line.points])
    if chart.diagonal:
        low, high = max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot((low, high), (low, high), color=QUIET, linewidth=1, dashes=(2, 4), clip_on=False)
    free = [name for name in LOOKS if name not in {line.look for line in lines}]
    drawn = [_line(axes, line, line.look or free.pop(0)) for line in lines]
    if chart.mark is not None:
        _mark(axes, *chart.mark)
    named = [(handle, safe(line.name, 44)) for handle, line in zip(drawn, lines, strict=True) if line.name]
    if named:
        widest = max(_letters(name) for _, name in named)
        columns = max(1, min(len(named), int((WIDTH + 18) // (54 + 0.57 * TYPE * widest))))
        if any(not name.isascii() for _, name in named):
            columns = 1  # letters outside ASCII may be wider than matplotlib measures
        legend = figure.legend(
            [handle for handle, _ in named],
            ["name"] * len(named),  # matplotlib leaves out names that begin with an underscore
            loc="upper left",
            ncols=columns,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2,
            columnspacing=1.4,
            labelspacing=0.3,
        )
        for text, (_, name) in zip(legend.get_texts(), named, strict=True):
            text.set_text(name)


def _set_margins(figure: Figure, renderer: RendererBase) -> None:
    """Set the margins to the size of texts and legend; a constrained layout would draw everything twice."""
    (axes,) = figure.axes
    inner = axes.get_window_extent(renderer)
    texts = axes.get_tightbbox(renderer) or inner
    above = sum(legend.get_window_extent(renderer).height + 2 * MARGIN for legend in figure.legends)
    figure.subplots_adjust(
        left=(inner.x0 - texts.x0 + MARGIN) / WIDTH,
        bottom=(inner.y0 - texts.y0 + MARGIN) / HEIGHT,
        right=1 - (texts.x1 - inner.x1 + MARGIN) / WIDTH,
        top=1 - (texts.y1 - inner.y1 + MARGIN + above) / HEIGHT,
    )


def _line(axes: Axes, line: Line, look: str) -> Any:
    xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
    if look in ("faint", "smooth"):
        width, alpha = (1, 0.5) if look == "faint" else (2.4, 1)
        return axes.plot(xs, ys, color=QUIET, linewidth=width, alpha=alpha, clip_on=False, zorder=2)[0]
    dashes, marker, filled = LOOKS[look]
    colour = list(COLOURS)[3 + list(LOOKS).index(look)]
    (drawn,) = axes.plot(xs, ys, color=colour, linewidth=2, clip_on=False, zorder=3)
    if dashes:
        drawn.set_dashes(dashes)
    if len(xs) <= MOST_MARKERS:
        drawn.set(marker=marker, markersize=6.5, markeredgewidth=1.6, markerfacecolor=colour if filled else PAPER)
    return drawn


def _mark(axes: Axes, x: float, name: str) -> None:
    """Draw a vertical line with its name above the axes."""
    low, high = axes.get_xlim()
    share = (x - low) / (high - low)
    side = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    axes.axvline(x, color=QUIET, linewidth=1, dashes=(6, 3), clip_on=False, zorder=1)
    axes.text(share, 1.01, safe(name, 40), ha=side, va="bottom", transform=axes.transAxes)


def _axes(axes: Axes, chart: LineChart, points: Sequence[tuple[float, float]]) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.set_xlim(*_across(xs, chart.ends))
    axes.set_ylim(*_up(ys, chart.ends))
    integers = all(x == round(x) for x in xs)  # such as steps
    for axis, label, most in ((axes.xaxis, chart.x_label, 52), (axes.yaxis, chart.y_label, 30)):
        ticks, texts, unit = ticks_of(*axis.get_view_interval(), integers=integers and axis is axes.xaxis)
        axis.set_ticks(ticks, texts)
        axis.set_tick_params(which="both", length=0, pad=9 if axis is axes.yaxis else 6)  # beside the first marker
        axis.set_label_text(safe(label, most) + unit)
    axes.grid(axis="y", color=GRID, linewidth=1, clip_on=False)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set(color=QUIET, linewidth=1)


def _across(values: Sequence[float], ends: tuple[float, float] | None) -> tuple[float, float]:
    """Return the ends of the horizontal axis: the range of the points, extended to `ends`."""
    low, high = min([*values, *(ends or ())], default=0.0), max([*values, *(ends or ())], default=1.0)
    if _alike(low, high):
        pad = max(0.5, 0.05 * abs(low))
        return low - pad, high + pad
    return low, high


def _up(values: Sequence[float], ends: tuple[float, float] | None) -> tuple[float, float]:
    """Return the ends of the vertical axis; it begins at 0 if the points keep at least half of it."""
    if ends:
        return _across(values, ends)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if _alike(low, high):
        low, high = min(0.0, low), max(0.0, high)
        high += low == high
    elif 0 <= low <= high / 2:
        low = 0.0
    pad = 0.05 * (high - low)
    return (0.0 if low == 0 else low - pad), high + pad


def _alike(low: float, high: float) -> bool:
    """Return whether two numbers differ by no more than rounding."""
    return high - low <= 1e-9 * max(abs(low), abs(high))


def ticks_of(low: float, high: float, *, integers: bool = False) -> tuple[list[float], list[str], str]:
    """Return round numbers within [low, high], their texts, and their unit, as " × 10⁻⁴"."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=integers and high - low >= 2)
    slack = 1e-6 * (high - low)
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low - slack <= tick <= high + slack]
    top = max(abs(low), abs(high))
    power = math.floor(math.log10(top)) if top and not 1e-2 <= top < 1e7 else 0
    shown = [tick / 10.0**power for tick in ticks]
    step = min((b - a for a, b in pairwise(shown)), default=1.0)
    places = next((p for p in range(16) if all(abs(round(v, p) - v) <= 1e-3 * step for v in shown)), 16)
    texts = [f"{0.0 if abs(v) < 1e-6 * step else v:,.{places}f}".replace("-", "−") for v in shown]
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ticks, texts, f" × 10{raised}" if power else ""


def _letters(text: str) -> float:
    """Return the approximate width of a text, in small Latin letters."""
    return sum(1.8 if unicodedata.east_asian_width(c) in "WF" else 1.5 if c.isupper() else 1.0 for c in text)
