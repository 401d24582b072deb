"""Who is served worse: slices behind the rest, and slices that got worse than under the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.evaluation.significance import holm
from ftengine.report.files import RunFiles
from ftengine.report.findings.chance import CHANCE
from ftengine.report.findings.finding import Finding
from ftengine.report.words import counted, listed, metric_name, plain, probability, quoted, short, with_interval

SLICE_GAP = 0.05
"""Gap relative to the whole split's figure, at the interval's near end, from which a slice is an alarm: with many
examples every difference between groups shows, also those that matter to nobody."""


MOST_SLICES = 5
"""Slices of a column that are named; the table has the others."""


def slices(files: RunFiles) -> Iterator[Finding]:
    """Name slices that the tuned model serves worse, and those that tuning made worse.

    All p-values are adjusted over all slices of all columns (Holm 1979): those of gaps come so, those of changes
    against the base are adjusted here. Small slices are not judged.
    """
    columns = {name: c for name, c in (files.evaluation.get("slices") or {}).items() if c["metric"] is not None}
    for name, column in columns.items():
        yield from _behind(files, name, column)
    yield from _worse(files, columns)
    for name, column in (files.evaluation.get("slices") or {}).items():
        values = [quoted(one["value"]) for one in column["slices"] if one.get("small")]
        if values:
            shown = listed(values) if len(values) <= 3 else f"{', '.join(values[:3])} and {len(values) - 3} more"
            are = "one slice is" if len(values) == 1 else "some slices are"
            text = f"By {short(name)}, {are} too small to be judged: {shown}."
            yield Finding("slices", "note", text, {"column": name, "small": len(values)})


def gap_to_others(column: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a slice's gap to all other examples with its adjusted p; None where there is none.

    Runs of older versions hold it for the worst slice alone, or with an interval of 95 % for each of the others.
    """
    if one.get("small"):
        return None
    if one["value"] == column.get("worst") and column.get("gap"):
        return column["gap"] | {"p_adjusted": column["gap"].get("p")}
    return dict(one["gap"]) if one.get("gap") else None


def is_behind(files: RunFiles, column: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    """Say whether a slice's figure is worse than that of the other examples, by chance or not."""
    gap, higher = gap_to_others(column, one), files.higher_is_better(column["metric"])
    if gap is None or gap.get("value") is None:
        return False
    return one["value"] == column.get("worst") if higher is None else (gap["value"] < 0) == higher


def _behind(files: RunFiles, name: str, column: Mapping[str, Any]) -> Iterator[Finding]:
    """Name the slices that are behind the other examples beyond chance, the one most surely so first."""
    found = [
        (one, gap)
        for one in column["slices"]
        if is_behind(files, column, one) and (gap := gap_to_others(column, one)) and _beyond_chance(gap)
    ]
    found.sort(key=lambda each: (each[0]["value"] != column.get("worst"), -_near_end(each[1])))
    for one, gap in found[:MOST_SLICES]:
        yield _told(files, name, column, one, gap)
    rest = found[MOST_SLICES:]
    if rest:
        alarming = any(_matters(files, column["metric"], gap) for _, gap in rest)
        yield Finding(
            "slices",
            "alarm" if alarming else "note",
            f"By {short(name)}, {counted(len(rest), 'more slice')} {'is' if len(rest) == 1 else 'are'} behind the "
            "other examples, beyond chance.",
            {"column": name, "values": [one["value"] for one, _ in rest]},
        )


def _told(
    files: RunFiles, name: str, column: Mapping[str, Any], one: Mapping[str, Any], gap: Mapping[str, Any]
) -> Finding:
    metric, p = column["metric"], gap["p_adjusted"]
    own = figure_of(one.get("tuned"), metric)
    rests = f" ({counted(one['examples'], 'example')})" if "examples" in one else ""
    text = (
        f"Where {short(name)} is {quoted(one['value'])}{rests}, the tuned model does worse than elsewhere: "
        f"{metric_name(metric)} {plain(own)}, {with_interval(gap, sign=True)} against the other examples, adjusted "
        f"{probability(p)}."
    )
    before = (column.get("base_gap") or {}) if one["value"] == column.get("worst") else {}
    if before.get("low") is not None and not before["low"] <= 0 <= before["high"]:
        same = (before["value"] > 0) == (gap["value"] > 0)
        text += f" The base has {'such a gap as well' if same else 'a gap to the other side'}: {plain(before)}."
    figures = {"column": name, "value": one["value"], "metric": metric, "tuned": own, "gap": gap, "p_adjusted": p}
    return Finding("slices", "alarm" if _matters(files, metric, gap) else "note", text, figures)


def _worse(files: RunFiles, columns: Mapping[str, Any]) -> Iterator[Finding]:
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
                "alarm" if _matters(files, metric, difference) else "note",
                f"Where {where}, the tuned model is worse than its base: {metric_name(metric)} changed by "
                f"{with_interval(difference, sign=True)}, adjusted {probability(p)}.",
                {"column": name, "value": one["value"], "metric": metric, "difference": difference, "p_adjusted": p},
            )


def _beyond_chance(gap: Mapping[str, Any]) -> bool:
    p = gap.get("p_adjusted")
    return gap.get("low") is not None and not gap["low"] <= 0 <= gap["high"] and p is not None and p <= CHANCE


def _near_end(change: Mapping[str, Any]) -> float:
    return min(abs(change["low"]), abs(change["high"]))


def _matters(files: RunFiles, metric: str, change: Mapping[str, Any]) -> bool:
    """Say whether a change beyond chance is a large part of the whole split's figure."""
    whole = abs((files.evaluation.get("tuned", {}).get(metric) or {}).get("value") or 1.0)
    return _near_end(change) >= SLICE_GAP * whole


def figure_of(figures: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """Return a metric's figure where figures lie by metric, or the figure itself where there is only one."""
    figures = figures or {}
    return dict(figures if "value" in figures else figures.get(metric) or {})
