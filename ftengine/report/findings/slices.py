"""Who is served worse: slices behind the rest, and slices that got worse than under the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.evaluation.multiple import holm
from ftengine.report.files import RunFiles
from ftengine.report.findings.finding import Finding
from ftengine.report.words import counted, listed, metric_name, plain, probability, quoted, short, with_interval

CHANCE = 0.05
"""Adjusted p-values above it are taken for chance."""

SLICE_GAP = 0.05
"""Gap relative to the whole split's figure, at the interval's near end, from which a slice is an alarm: with many
examples every difference between groups shows, also those that matter to nobody."""


def slices(files: RunFiles) -> Iterator[Finding]:
    """Name slices that the tuned model serves worse, and those that tuning made worse.

    All p-values are adjusted over all slices of all columns (Holm 1979): those of gaps come so, those of changes
    against the base are adjusted here. Small slices are not judged.
    """
    columns = files.evaluation.get("slices") or {}
    gaps = {name: c for name, c in columns.items() if (c.get("gap") or {}).get("p") is not None}
    for name, column in gaps.items():
        gap, p = column["gap"], column["gap"]["p"]
        if gap.get("low") is not None and not gap["low"] <= 0 <= gap["high"] and p <= CHANCE:
            yield _behind(files, name, column, p)
    yield from _worse(columns)
    for name, column in columns.items():
        values = [quoted(one["value"]) for one in column["slices"] if one.get("small")]
        if values:
            shown = listed(values) if len(values) <= 3 else f"{', '.join(values[:3])} and {len(values) - 3} more"
            text = f"By {short(name)}, some slices are too small to be judged: {shown}."
            yield Finding("slices", "note", text, {"column": name, "small": len(values)})


def _behind(files: RunFiles, name: str, column: Mapping[str, Any], p: float) -> Finding:
    gap, metric = column["gap"], column["metric"]
    worst: Mapping[str, Any] = next((one for one in column["slices"] if one["value"] == column["worst"]), {})
    own = figure_of(worst.get("tuned"), metric)
    overall = abs((files.evaluation.get("tuned", {}).get(metric) or {}).get("value") or 1.0)
    level = "alarm" if min(abs(gap["low"]), abs(gap["high"])) >= SLICE_GAP * overall else "note"
    rests = f" ({counted(worst['examples'], 'example')})" if "examples" in worst else ""
    text = (
        f"Where {short(name)} is {quoted(column['worst'])}{rests}, the tuned model does worse than elsewhere: "
        f"{metric_name(metric)} {plain(own)}, {with_interval(gap, sign=True)} against the other examples, adjusted "
        f"{probability(p)}."
    )
    before = column.get("base_gap") or {}
    if before.get("low") is not None and not before["low"] <= 0 <= before["high"]:
        same = (before["value"] > 0) == (gap["value"] > 0)
        text += f" The base has {'such a gap as well' if same else 'a gap to the other side'}: {plain(before)}."
    figures = {"column": name, "worst": column["worst"], "metric": metric, "tuned": own, "gap": gap, "p_adjusted": p}
    return Finding("slices", level, text, figures)  # type: ignore[arg-type]


def _worse(columns: Mapping[str, Any]) -> Iterator[Finding]:
    found = []
    for name, column in columns.items():
        for one in column["slices"]:
            difference = figure_of(one.get("difference"), column["metric"])
            if difference.get("p") is not None and not one.get("small"):
                found.append((name, column["metric"], one, difference))
    for (name, metric, one, difference), p in zip(found, holm([d["p"] for *_, d in found]), strict=True):
        if difference.get("better") is False and p <= CHANCE:
            where = f"{short(name)} is {quoted(one['value'])} ({counted(one['examples'], 'example')})"
            yield Finding(
                "slices",
                "alarm",
                f"Where {where}, the tuned model is worse than its base: {metric_name(metric)} changed by "
                f"{with_interval(difference, sign=True)}, adjusted {probability(p)}.",
                {"column": name, "value": one["value"], "metric": metric, "difference": difference, "p_adjusted": p},
            )


def figure_of(figures: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """Return a metric's figure where figures lie by metric, or the figure itself where there is only one."""
    figures = figures or {}
    return dict(figures if "value" in figures else figures.get(metric) or {})
