"""report.html: one page that needs no network, no script and no font, and in which all data is text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ftengine.api import redact
from ftengine.report import words
from ftengine.report.charts import together
from ftengine.report.draw import draw, interval_plot
from ftengine.report.files import RunFiles
from ftengine.report.glossary import GLOSSARY
from ftengine.report.sections import Section, differing_keys, heading, sections
from ftengine.report.text import cut, duration, number, printable, share, size
from ftengine.report.verdict import judge

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST = 4000
"""Characters of one text from data or models that the page holds; the files have the rest."""


def render(runs: Sequence[RunFiles]) -> str:
    """Return the page on one run, or on several side by side.

    Args:
        runs: their files; the order is kept.
    """
    shown = [_Shown(i, files, names) for i, (files, names) in enumerate(zip(runs, _names(runs), strict=True), 1)]
    style = _style()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            runs=shown,
            title=" and ".join(run.name for run in shown[:3]),
            style=Markup(style),
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            beside=_beside(shown) if len(shown) > 1 else None,
            glossary=GLOSSARY,
        )
    )


class _Shown:
    """One run as the template reads it."""

    def __init__(self, index: int, files: RunFiles, name: str) -> None:
        self.files, self.name, self.id = files, name, f"run{index}"
        self.verdict = judge(files)
        # Every headline begins with a few words of this package's own, then a colon.
        lead, _, rest = self.verdict["headline"].partition(": ")
        self.lead, self.summary = lead, rest[:1].upper() + rest[1:]
        self.heading = heading(files)
        self.sections: list[Section] = sections(files)
        self.anchors = {kind: section for section in self.sections for kind in section.kinds}


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run: its folder's, with as many parents as tell it from the others."""
    for depth in range(1, 6):
        names = ["/".join(files.path.resolve().parts[-depth:]) for files in runs]
        if len(set(names)) == len(names):
            return names
    return [str(files.path) for files in runs]


def _beside(shown: Sequence[_Shown]) -> dict[str, Any]:
    """Return what stands side by side: metrics, costs, and the keys in which the recipes differ."""
    metrics = list(dict.fromkeys(m for run in shown for m in run.files.evaluation.get("tuned", {})))
    contents = {
        (run.files.audit.get("encoded", {}).get(run.files.evaluation.get("split")) or {}).get("content")
        for run in shown
    }
    return {
        "metrics": [
            (words.metric_name(m), [run.files.evaluation.get("tuned", {}).get(m) for run in shown]) for m in metrics
        ],
        "same_examples": len(contents) == 1 and None not in contents,
        "differing": differing_keys([run.files.recipe for run in shown]),
        "chart": together(
            (run.name, [(line["step"], line["validation_loss"]) for line in run.files.validations]) for run in shown
        ),
    }


@cache
def _style() -> str:
    return (resources("ftengine.report") / "templates" / "report.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ftengine.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": words.plain,
        "interval": words.interval,
        "metric": words.metric_name,
        "at_zero": lambda figure, metric: words.at_zero(metric, figure),
        "percent": words.percent,
        "short": words.short,
        "rough": lambda value: "–" if value is None else number(float(f"{value:.2g}")),
        "hundredths": lambda value: "–" if value is None else words.digits(value, 2),
        "probability": words.probability,
        "number": number,
        "duration": duration,
        "size": size,
        "share": share,
        "cut": lambda text, most: cut(redact(text), most),  # first, as half of a value is not recognised
        "thousands": lambda value: "–" if value is None else f"{value:,}",
        "signed": lambda figure: words.plain(figure, sign=True),
        "signed_interval": lambda figure: words.interval(figure, sign=True),
    }
    environment.globals |= {"pair_plot": _pair_plot, "draw": draw}
    return environment


def _pair_plot(name: str, *sides: Mapping[str, Any] | None) -> Markup:
    """Draw the figures of base and tuned model."""
    known = [(f["value"], f["low"], f["high"]) if f and f.get("value") is not None else None for f in sides]
    return interval_plot(name, *known)


def _harmless(value: Any) -> Any:
    """Mask likely personal data, and write as escapes what steers a reader's direction of writing or is no text.

    jinja2 escapes the markup.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return cut(printable(redact(value)), LONGEST)
