"""Rule `slice-gaps`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ftengine.api import Finding, Rule
from ftengine.api.figures import (
    Figure,
    counted,
    ends,
    listed,
    plain,
    probability,
    quoted,
    short,
    to_json,
    with_interval,
)
from ftengine_builtins.rules.chance import CHANCE, holm

if TYPE_CHECKING:
    from ftengine import RunRecords

SLICE_GAP = 0.05
"""Gap relative to the whole split's figure, at the interval's near end, from which a slice is an alarm: with many
examples every difference between groups shows, also those that matter to nobody."""

MOST_SLICES = 5
"""Slices of a column that are named; the table has the others."""


class SliceGaps(Rule):
    """Names slices that the tuned model serves worse than the others, and those that tuning made worse.

    All p-values are adjusted over all slices of all columns (Holm 1979). Small slices are not judged.
    """

    name = "slice-gaps"
    order = 10

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        columns = {name: column for name, column in run.evaluation.slices.items() if column.metric is not None}
        for name, column in columns.items():
            yield from _behind(run, name, column)
        yield from _worse(run, columns)
        for name, column in run.evaluation.slices.items():
            values = [quoted(one.value) for one in column.slices if one.small]
            if values:
                shown = listed(values) if len(values) <= 3 else f"{', '.join(values[:3])} and {len(values) - 3} more"
                are = "one slice is" if len(values) == 1 else "some slices are"
                text = f"By {short(name)}, {are} too small to be judged: {shown}."
                yield Finding(kind="slices", level="note", text=text, figures={"column": name, "small": len(values)})


def _behind(run: RunRecords, name: str, column) -> Iterator[Finding]:
    """Name the slices that are behind the other examples beyond chance, the one most surely so first."""
    higher = run.evaluation.metrics[column.metric].higher_is_better
    found = [
        one
        for one in column.slices
        if not one.small and _beyond_chance(one.gap) and (one.gap.value < 0) == bool(higher)
    ]
    found.sort(key=lambda one: (one.value != column.worst, -_near_end(one.gap)))
    for one in found[:MOST_SLICES]:
        yield _told(run, name, column, one)
    rest = found[MOST_SLICES:]
    if rest:
        alarming = any(_matters(run, column.metric, one.gap) for one in rest)
        yield Finding(
            kind="slices",
            level="alarm" if alarming else "note",
            text=f"By {short(name)}, {counted(len(rest), 'more slice')} {'is' if len(rest) == 1 else 'are'} behind the "
            "other examples, beyond chance.",
            figures={"column": name, "values": [one.value for one in rest]},
        )


def _told(run: RunRecords, name: str, column, one) -> Finding:
    metric, gap, own = column.metric, one.gap, one.tuned.get(column.metric)
    label = run.evaluation.metrics[metric].label
    text = (
        f"Where {short(name)} is {quoted(one.value)} ({counted(one.examples, 'example')}), the tuned model does worse "
        f"than elsewhere: {label} {plain(own)}, {with_interval(gap, sign=True)} against the other examples, adjusted "
        f"{probability(gap.p_adjusted)}."
    )
    before = column.base_gap if one.value == column.worst else None
    if before is not None and (interval := ends(before)) is not None and not interval[0] <= 0 <= interval[1]:
        same = (before.value > 0) == (gap.value > 0)
        text += f" The base has {'such a gap as well' if same else 'a gap to the other side'}: {plain(before)}."
    figures = {"column": name, "value": one.value, "metric": metric, "tuned": to_json(own), "gap": to_json(gap)}
    return Finding(
        kind="slices",
        level="alarm" if _matters(run, metric, gap) else "note",
        text=text,
        figures={**figures, "p_adjusted": gap.p_adjusted},
    )


def _worse(run: RunRecords, columns: Mapping[str, Any]) -> Iterator[Finding]:
    found = {
        (name, one.value): (column.metric, one, one.difference[column.metric])
        for name, column in columns.items()
        for one in column.slices
        if not one.small and column.metric in one.difference and one.difference[column.metric].p is not None
    }
    for (name, value), p in holm({key: difference.p for key, (*_, difference) in found.items()}).items():
        metric, one, difference = found[name, value]
        if difference.better is False and p <= CHANCE:
            where = f"{short(name)} is {quoted(value)} ({counted(one.examples, 'example')})"
            yield Finding(
                kind="slices",
                level="alarm" if _matters(run, metric, difference) else "note",
                text=f"Where {where}, the tuned model is worse than its base: {run.evaluation.metrics[metric].label} "
                f"changed by {with_interval(difference, sign=True)}, adjusted {probability(p)}.",
                figures={
                    "column": name,
                    "value": value,
                    "metric": metric,
                    "difference": to_json(difference),
                    "p_adjusted": p,
                },
            )


def _beyond_chance(gap) -> bool:
    interval = ends(gap)
    if interval is None or gap.p_adjusted is None:
        return False
    return not interval[0] <= 0 <= interval[1] and gap.p_adjusted <= CHANCE


def _near_end(change: Figure) -> float:
    return min(map(abs, ends(change) or (0.0,)))


def _matters(run: RunRecords, metric: str, change: Figure) -> bool:
    """Say whether a change beyond chance is a large part of the whole split's figure."""
    whole = run.evaluation.tuned.get(metric)
    return _near_end(change) >= SLICE_GAP * abs((whole.value if whole is not None else 0.0) or 1.0)
