"""Displays as HTML: tables, shaded matrices, charts with the numbers behind them, and intervals on a scale.

All text of a display is data: it is escaped, likely personal data in it is masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from statistics import fmean

from markupsafe import Markup

from ftengine.api import Display, Line, LineChart, Matrix, Table
from ftengine.report.plot import MOST_LINES, line_svg, safe
from ftengine.text import Figure, ends, has_value, number, with_interval

MOST_POINTS = 200
"""Points drawn of a line; a longer line is averaged in groups of neighbours, which looks the same in a small chart."""
MOST_ROWS = 40
"""Points of a line in the table of a chart's numbers."""
SHADES = 8
"""Shades of a matrix, classes s1 to s8 of report.css."""
WIDE = 6
"""A table of at least this many columns takes the full width of the page."""

UNDEFINED = "A dash marks a figure that cannot be computed."
NO_POINT = "A dash marks a missing point of a line."

INTERVAL = re.compile(r"([^()]+) (\([^()]+ to [^()]+\))")
"""A cell with an interval, "0.93 (0.90 to 0.96)"; the interval is shown on its own line."""

Cell = str | int | float | None
Point = tuple[float, float]


def draw(display: Display) -> Markup:
    """Return a display as HTML."""
    if isinstance(display, Table):
        return _table(display)
    return _matrix(display) if isinstance(display, Matrix) else _chart(display)


def merge_charts(base: Iterable[LineChart], tuned: Iterable[LineChart]) -> list[LineChart]:
    """Join charts of base and tuned model that have one title, in the order of the tuned model's."""
    sides = {"base": {chart.title: chart for chart in base}, "tuned": {chart.title: chart for chart in tuned}}
    merged = []
    for title in dict.fromkeys(chain(sides["tuned"], sides["base"])):
        charts = {side: by_title[title] for side, by_title in sides.items() if title in by_title}
        lines = [
            [_of_side(line, side, i, chart) for i, line in enumerate(chart.lines)] for side, chart in charts.items()
        ]
        mixed = tuple(line for pair in zip_longest(*lines) for line in pair if line is not None)
        first = charts["tuned" if "tuned" in charts else "base"]
        merged.append(first.model_copy(update={"lines": mixed}))
    return merged


def _of_side(line: Line, side: str, i: int, chart: LineChart) -> Line:
    name = side if len(chart.lines) == 1 else f"{side}, {line.name}"
    return line.model_copy(update={"name": name} | ({"look": side} if i == 0 else {}))


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points: the last x and the mean y of each group of neighbours."""
    size = max(1, -(-len(points) // most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], fmean(y for _, y in group)) for group in groups]


def interval_plot(name: str, base: Figure | None, tuned: Figure | None) -> Markup:
    """Draw a metric of base (a ring) and tuned model (a diamond) with their intervals on one scale."""
    sides = [(look, figure) for look, figure in (("base", base), ("tuned", tuned)) if has_value(figure)]
    if not sides:
        return Markup("")
    low, high = _scale([value for _, figure in sides for value in (figure.value, *(ends(figure) or ()))])
    width, row = 220, 16
    height = row * len(sides) + 4

    def x(value: float) -> str:
        return f"{6 + (width - 12) * (value - low) / (high - low):.1f}"

    parts = [f'<path class="track" d="M6 1V{height - 1}M{width - 6} 1V{height - 1}"/>']
    if low < 0 < high:
        parts.append(f'<path class="zero" d="M{x(0)} 0V{height}"/>')
    for i, (look, figure) in enumerate(sides):
        y = 2 + row // 2 + row * i
        parts.append(f'<path class="track" d="M6 {y}H{width - 6}"/>')
        if (interval := ends(figure)) is not None:
            left, right = map(x, interval)
            parts.append(f'<path class="whisker {look}" d="M{left} {y}H{right}M{left} {y - 4}v8M{right} {y - 4}v8"/>')
        at = x(figure.value)
        ring, diamond = f'circle cx="{at}" cy="{y}" r="4"', f'path d="M{at} {y - 5}l5 5l-5 5l-5 -5z"'
        parts.append(f'<{diamond if look == "tuned" else ring} class="marker {look}"/>')
    title = f"{name}: " + ", ".join(f"{look} {with_interval(figure)}" for look, figure in sides)
    return Markup(
        '<svg class="interval" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        "<title>{title}</title>{parts}</svg>"
    ).format(width=width, height=height, title=safe(title), parts=Markup("".join(parts)))


def _scale(values: Sequence[float]) -> Point:
    """Return the ends of a scale: 0 and 1 if all values lie between, else their range with a margin."""
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    pad = 0.05 * (high - low or abs(high))
    return low - pad, high + pad


def _table(table: Table) -> Markup:
    has_undefined = any(cell is None for row in table.rows for cell in row)
    caption = " ".join(filter(None, (table.caption, UNDEFINED if has_undefined else "")))
    content = _grid(table.columns, _cells(table.rows), table.title, caption)
    return _scrolling(table.title, content, _width(len(table.columns)))


def _cells(rows: Iterable[Sequence[Cell]]) -> list[list[tuple[Cell, str]]]:
    return [[(cell, _kind(cell)) for cell in row] for row in rows]


def _kind(cell: Cell) -> str:
    """Return the CSS class of a cell."""
    if not isinstance(cell, str) or INTERVAL.fullmatch(cell):
        return "num"
    return "words" if len(cell) > 24 else ""


def _matrix(matrix: Matrix) -> Markup:
    rows: list[list[tuple[Cell, str]]] = []
    for i, (name, counts) in enumerate(zip(matrix.names, matrix.cells, strict=True)):
        total = sum(counts) or 1
        looks = [f"num s{count and max(1, round(SHADES * count / total))}" for count in counts]
        looks[i] += " right"
        rows.append([(name, ""), *zip(counts, looks, strict=True)])
    corner = " \\ ".join(filter(None, (matrix.row_label, matrix.column_label))) or "row"
    by = f"{matrix.row_label or 'row'} by row, {matrix.column_label or 'column'} by column"
    caption = f"{by}. {matrix.caption}".strip()
    content = _grid((corner, *matrix.names), rows, matrix.title, caption, look="confusion")
    return _scrolling(matrix.title, content, _width(len(matrix.names) + 1))


def _width(columns: int) -> str:
    return "wide" if columns >= WIDE else ""


def _chart(chart: LineChart) -> Markup:
    drawn = chart.model_copy(
        update={"lines": tuple(line.model_copy(update={"points": tuple(thinned(line.points))}) for line in chart.lines)}
    )
    notes = [chart.caption] if chart.caption else []
    longest = max((len(line.points) for line in chart.lines), default=0)
    if longest > MOST_POINTS:
        notes.append(f"A line's points are means of up to {-(-longest // MOST_POINTS)} neighbours.")
    if len(chart.lines) > MOST_LINES:
        notes.append(f"The first {MOST_LINES} of {len(chart.lines)} lines are drawn; the numbers have all.")
    columns, rows = numbers(chart)
    return Markup(
        '<figure class="display"><p class="title">{title}</p>{svg}<figcaption>{notes}</figcaption>'
        '<details class="numbers"><summary>Numbers</summary>{numbers}</details></figure>'
    ).format(
        title=safe(chart.title, 120),
        svg=line_svg(drawn, text_of(drawn)),
        notes=_text(" ".join(notes)),
        numbers=_scrolling(
            f"Numbers behind the chart {chart.title}",
            _grid(columns, _cells(rows), caption=NO_POINT if any(None in row for row in rows) else ""),
        ),
    )


def numbers(chart: LineChart) -> tuple[tuple[str, ...], list[tuple[str | float | None, ...]]]:
    """Return a chart's numbers as columns and rows.

    There is one column for each line if the lines share their x values, else one row (line, x, y) for each point.
    """
    lines = [(line.name or chart.y_label, thinned(line.points, MOST_ROWS)) for line in chart.lines]
    by_x = [dict(points) for _, points in lines]
    every = sorted({x for values in by_x for x in values})
    longest = max((len(points) for _, points in lines), default=0)
    if sum(map(len, by_x)) == sum(len(points) for _, points in lines) and len(every) <= 1.5 * longest:
        columns = (chart.x_label, *(name for name, _ in lines))
        return columns, [(x, *(values.get(x) for values in by_x)) for x in every]
    return ("line", chart.x_label, chart.y_label), [(name, x, y) for name, points in lines for x, y in points]


def text_of(chart: LineChart) -> str:
    """Describe a chart in words, for screen readers."""
    sentences = [f"{chart.title}: {chart.y_label} by {chart.x_label}."]
    for line in chart.lines:
        if not line.points:
            continue
        x, y = min(line.points, key=lambda point: point[1])
        first, last = line.points[0][1], line.points[-1][1]
        name = line.name or chart.y_label
        if chart.diagonal:
            x, y = max(line.points, key=lambda point: abs(point[1] - point[0]))
            sentences.append(f"{name}: furthest from the diagonal at {number(x)}, with {number(y)}.")
        else:
            sentences.append(f"{name}: from {number(first)} to {number(last)}, lowest {number(y)} at {number(x)}.")
    if chart.mark is not None:
        sentences.append(f"{chart.mark[1]}.")
    return safe(" ".join(sentences))


def _grid(
    columns: Sequence[str],
    rows: Iterable[Sequence[tuple[Cell, str]]],
    title: str = "",
    caption: str = "",
    look: str = "",
) -> Markup:
    """Return a table of (cell, CSS classes); a text in the first column is the row's header."""
    rows = list(rows)
    kinds = [kind for _, kind in rows[0]] if rows else [""] * len(columns)
    head = Markup("").join(
        Markup('<th scope="col" class="{}"><bdi>{}</bdi></th>').format("num" if "num" in kind else "", _text(name))
        for name, kind in zip(columns, kinds, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell(cell, kind, i == 0) for i, (cell, kind) in enumerate(row)))
        for row in rows
    )
    named = Markup("<strong>{}</strong> ").format(_text(title)) if title else ""
    top = Markup("<caption>{}{}</caption>").format(named, _text(caption)) if title or caption else ""
    table = Markup('<table class="{} display">{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>')
    return table.format(look, top, head, body)


def _cell(cell: Cell, kind: str, first: bool) -> Markup:
    if first and isinstance(cell, str):
        return Markup('<th scope="row"><bdi>{}</bdi></th>').format(_text(cell))
    if isinstance(cell, str) and (match := INTERVAL.fullmatch(cell)):
        two = Markup('<td class="num"><span class="value">{}</span><span class="ends">{}</span></td>')
        return two.format(*map(_text, match.groups()))
    shown = _text(cell) if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else number(cell)
    return Markup('<td class="{}"><bdi>{}</bdi></td>').format(kind, shown.replace("-", "−") if kind == "num" else shown)


def _scrolling(name: str, content: Markup, look: str = "") -> Markup:
    """Return a box that scrolls, also by keyboard, if the screen is narrower than its content."""
    box = Markup('<div class="{}" role="region" tabindex="0" aria-label="{}">{}</div>')
    return box.format(f"scroll {look}".rstrip(), _text(name), content)


def _text(text: str) -> str:
    return safe(text, 4000)
