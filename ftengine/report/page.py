"""report.html: one page without network access, scripts or fonts, in which all data is escaped text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ftengine.api import Table
from ftengine.evaluation import is_beyond_chance
from ftengine.report.charts import together
from ftengine.report.draw import draw, interval_plot
from ftengine.report.sections import Section, beside, heading, sections
from ftengine.run.records import RunRecords, Verdict
from ftengine.text import (
    at_zero,
    capitalized,
    cut,
    duration,
    has_value,
    interval,
    no_interval,
    number,
    plain,
    printable,
    probability,
    redact,
    short,
    size,
    speed,
    test_name,
)

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST = 4000
"""Characters shown of one text from data or models; the run's files have the rest."""


@dataclass(frozen=True)
class Overview:
    """The part of a page about several runs, before those about each run.

    Args:
        title: title of the page; "" for one made from the number of runs.
        lead: paragraphs with the result of all runs.
        tables: pooled figures of the runs, or their differences.
        notes: paragraphs that explain the tables.
        folds: whether the runs are folds, measured on different examples of the same data.
    """

    title: str = ""
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    folds: bool = False


def render(runs: Sequence[tuple[RunRecords, Verdict]], names: Sequence[str], overview: Overview | None = None) -> str:
    """Return the page of one run, or of several side by side with an overview."""
    shown = [_Shown(i, run, verdict, name) for i, ((run, verdict), name) in enumerate(zip(runs, names, strict=True), 1)]
    style = (resources("ftengine.report") / "templates" / "report.css").read_text(encoding="utf-8")
    overview = overview or Overview()
    declared = [metric for run, _ in runs for metric in run.evaluation.metrics.values()]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            runs=shown,
            title=overview.title or " and ".join(run.name for run in shown[:3]),
            style=Markup(style),
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            beside=_beside(shown, overview) if len(shown) > 1 else None,
            meanings={metric.label: metric.meaning for metric in declared if metric.meaning},
        )
    )


class _Shown:
    """One run, prepared for the template."""

    def __init__(self, index: int, run: RunRecords, verdict: Verdict, name: str) -> None:
        self.run, self.verdict, self.name, self.id = run, verdict, name, f"run{index}"
        # A headline begins with a few words, then a colon.
        lead, _, rest = verdict.headline.partition(": ")
        self.lead, self.summary = lead, capitalized(rest)
        self.heading = heading(run)
        self.found_by = list(dict.fromkeys(finding.source for finding in verdict.findings if finding.source))
        self.sections: list[Section] = sections(run)
        self.anchors = {kind: section for section in self.sections for kind in section.kinds}


def _beside(shown: Sequence[_Shown], overview: Overview) -> dict[str, Any]:
    """Return the content of the comparison: metrics of all runs, their differences, and recipe keys that differ."""
    evaluations = [run.run.evaluation for run in shown]
    declared = {name: metric for evaluation in evaluations for name, metric in evaluation.metrics.items()}
    contents = {run.run.audit.contents.get(run.run.evaluation.split or "") for run in shown}
    # Bases are the same if their figures on these examples are, whatever their names.
    base = evaluations[0].base if len({str(run.base) for run in evaluations}) == 1 else None
    rows = [
        (declared[name].label, base and base.get(name), [run.tuned.get(name) for run in evaluations])
        for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation.tuned)
    ]
    return {
        "metrics": rows,
        "base": base is not None,
        "same_examples": len(contents) == 1 and None not in contents,
        "overview": overview,
        "differing": beside([(run.name, run.run) for run in shown]),
        "chart": together((run.name, [(v.step, v.validation_loss) for v in run.run.validations]) for run in shown),
    }


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
        "plain": plain,
        "interval": interval,
        "short": short,
        "rough": lambda value: number(float(f"{value:.2g}")),
        "probability": probability,
        "number": number,
        "duration": duration,
        "size": size,
        "cut": lambda text, most: cut(
            redact(text), most
        ),  # redact before cutting, as half of a value is not recognised
        "thousands": lambda value: "–" if value is None else f"{value:,}",
    }
    environment.globals |= {"pair_plot": interval_plot, "draw": draw, "has_value": has_value}
    environment.globals |= {"at_zero": at_zero, "no_interval": no_interval}
    environment.globals |= {"is_beyond_chance": is_beyond_chance, "test_name": test_name, "speed": speed}
    return environment


def _harmless(value: Any) -> Any:
    """Redact likely personal data and escape control characters; jinja2 escapes the markup."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return cut(printable(redact(value)), LONGEST)
