"""Draw a run's losses, its base against its tuned model, and its verdict, as report.html does, into one SVG.

python examples/chat/picture.py runs/demo docs/demo.svg
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path

from markupsafe import escape

from ftengine import RunRecords
from ftengine.report import charts, draw, plot
from ftengine.text import with_ends

CSS = (Path(draw.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
WIDTH, HEIGHT, MARGIN, COLUMN = 960, 330, 20, 480
MOST = 3
"""Metrics that the picture has room for; with fewer, the verdict."""
LETTERS = 66
"""Of a line of the verdict."""


def variables(theme: str) -> str:
    """Return the style sheet's colours: of the first block, or of the one for dark screens."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    return " ".join(re.findall(r"--[\w-]+: [^;]+;", blocks[theme == "dark"]))


def rules() -> str:
    """Return the style sheet's rules on drawings."""
    return "\n".join(re.findall(r"^(?:\.zero|\.marker|\.track|\.whisker|svg text)[^\n]*\}", CSS, re.MULTILINE))


def text(x: float, y: float, words: str, look: str = "") -> str:
    return f'<text x="{x}" y="{y}"{look and f" class={chr(34)}{look}{chr(34)}"}>{escape(words)}</text>'


def placed(svg: str, x: float, y: float, scale: float = 1.0) -> str:
    """Return what lies inside of a drawing, moved."""
    inside = re.sub(r"^<svg[^>]*>|</svg>$|<title>.*?</title>", "", str(svg))
    return f'<g transform="translate({x} {y}) scale({scale})">{inside}</g>'


def picture(run: RunRecords) -> str:
    """Return the losses of a run beside the figures of both models."""
    evaluation, validations = run.evaluation, run.validations
    chart = charts.losses(
        [(step.step, step.loss) for step in run.steps],
        [(one.step, one.validation_loss) for one in validations],
        [(one.step, one.training_loss) for one in validations if one.training_loss is not None],
        run.kept_step,
    )
    parts = [
        text(MARGIN, 26, "Losses while training", "title"),
        placed(plot.line_svg(chart, "Losses"), MARGIN, 38, 0.98),
    ]
    distinct = evaluation.tuned[run.headline_metric].n
    left, y = MARGIN + COLUMN - 10, 62
    parts.append(text(left, 26, f"{distinct} held-out examples, 95 % intervals", "title"))
    for name, metric in list(evaluation.metrics.items())[:MOST]:
        base, tuned, difference = evaluation.base[name], evaluation.tuned[name], evaluation.difference[name]
        shown = [
            f"base  {with_ends(base)}",
            f"tuned  {with_ends(tuned)}",
            f"difference  {with_ends(difference, sign=True)}",
        ]
        parts += [
            text(left, y, metric.label, "name"),
            placed(draw.interval_plot(metric.label, base, tuned), left, y + 8),
        ]
        parts += [text(left + 232, y + 22 + 18 * i, words) for i, words in enumerate(shown)]
        y += 92
    headline = json.loads((run.path / "verdict.json").read_text(encoding="utf-8"))["headline"]
    if len(evaluation.metrics) < MOST:
        parts.append(text(left, y, "Verdict", "title"))
        parts += [text(left, y + 22 + 18 * i, line) for i, line in enumerate(textwrap.wrap(headline, LETTERS)[:4])]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("output", type=Path, help="the SVG file")
    arguments = parser.parse_args()
    drawn = picture(RunRecords.read(arguments.run))
    style = (
        f":root {{ {variables('light')} }} @media (prefers-color-scheme: dark) {{ :root {{ {variables('dark')} }} }}"
    )
    style += f"\n{rules()}\n.title {{ font-weight: 600; fill: var(--text); }} .name {{ fill: var(--text); }}"
    arguments.output.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">\n'
        f"<style>{style}</style>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="var(--paper)" stroke="var(--line)"/>\n'
        f"{drawn}\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
