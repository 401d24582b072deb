"""Rule `slice-gaps`."""

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import is_beyond_chance, near_end
from ftengine.text import Figure, counted, listed, plain, probability, quoted, short, untested_slices, with_interval

SLICE_GAP = 0.05
"""Gap relative to the whole split's figure, at the interval's near end, from which a slice is an alarm: with many
examples every difference between groups shows, also those that matter to nobody."""

MOST_SLICES = 5
"""Slices of a column that are named; the table has the others."""


class SliceGaps(Rule):
    """Names slices that the tuned model serves worse than the others, and those that tuning made worse.

    All p-values are adjusted over all slices of all columns (Holm 1979). Small slices are not judged. The slice most
    surely behind comes first: the one whose interval's near end is furthest from 0.
    """

    name = "slice-gaps"
    order = 10

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        columns = {name: column for name, column in run.evaluation.slices.items() if column.metric is not None}
        for name, column in columns.items():
            yield from _behind(run, name, column)
        if not run.trained.new_modules:  # of a fresh head, whose guesses are no measure
            yield from _worse(run, columns)
        for name, column in run.evaluation.slices.items():
            values = [quoted(one.value) for one in column.slices if one.small]
            if not values:
                continue
            if len(values) == len(column.slices):
                count = counted(len(values), "value") if not column.left_out else f"more than {len(values):,} values"
                grouped = any(figure.rows is not None for figure in run.evaluation.tuned.values())
                least = run.recipe.evaluation.small_slice
                text = untested_slices(name, count, column.examples, least, grouped=grouped)
            else:
                shown = listed(values) if len(values) <= 3 else f"{', '.join(values[:3])} and {len(values) - 3:,} more"
                are = "one slice is" if len(values) == 1 else "some slices are"
                text = f"By {short(name)}, {are} too small to be judged: {shown}."
            yield Finding(kind="slices", level="note", text=text, figures={"column": name, "small": len(values)})


def _behind(run: RunRecords, name: str, column: Any) -> Iterator[Finding]:
    """Name the slices that are behind the other examples beyond chance."""
    higher = bool(run.evaluation.metrics[column.metric].higher_is_better)
    behind = [one for one in column.slices if is_beyond_chance(one.gap) and (one.gap.value < 0) == higher]
    behind.sort(key=lambda one: -near_end(one.gap))
    exceptions = [one for one in behind if not column.is_usual(one)]
    yield from (_exception(run, name, column, one) for one in behind if one not in exceptions)
    yield from (_finding(run, name, column, one) for one in exceptions[:MOST_SLICES])
    if rest := exceptions[MOST_SLICES:]:
        are = "is" if len(rest) == 1 else "are"
        text = f"By {short(name)}, {counted(len(rest), 'more slice')} {are} worse than the other examples beyond "
        text += "chance, with weaker evidence than those named."
        level = "alarm" if any(_matters(run, column.metric, one.gap) for one in rest) else "note"
        figures = {"column": name, "values": [one.value for one in rest]}
        yield Finding(kind="slices", level=level, text=text, figures=figures)


def _exception(run: RunRecords, name: str, column: Any, one: Any) -> Finding:
    """Say that few examples are served better than the slice that holds nearly all."""
    label, others = run.evaluation.metrics[column.metric].label, column.examples - one.examples
    ahead = one.gap if one.gap.value > 0 else one.gap.negated()
    text = f"Where {short(name)} is not {quoted(one.value)} ({others:,} of {column.examples:,} examples), {label} is "
    text += f"better by {with_interval(ahead)}, adjusted {probability(one.gap.p_adjusted)}."
    return Finding(kind="slices", level="note", text=text, figures=_figures(name, column.metric, one))


def _finding(run: RunRecords, name: str, column: Any, one: Any) -> Finding:
    label, own = run.evaluation.metrics[column.metric].label, plain(one.tuned.get(column.metric))
    text = f"Worse than the others where {_where(name, one)}: {label} {own}, "
    text += f"a gap of {with_interval(one.gap, sign=True)}, adjusted {probability(one.gap.p_adjusted)}."
    before = column.base_gap if one.value == column.worst else None
    if before is not None and near_end(before):
        side = "worse there too" if (before.value > 0) == (one.gap.value > 0) else "better there"
        text += f" The base is {side}: {with_interval(before, sign=True)}."
    brief = f"{label} is {own} where {_where(name, one)}"
    level = "alarm" if _matters(run, column.metric, one.gap) else "note"
    return Finding(kind="slices", level=level, text=text, brief=brief, figures=_figures(name, column.metric, one))


def _worse(run: RunRecords, columns: Mapping[str, Any]) -> Iterator[Finding]:
    """Name the slices that tuning made worse beyond chance."""
    changes = [
        (name, column.metric, one, change)
        for name, column in columns.items()
        for one in column.slices
        if not one.small and (change := one.difference.get(column.metric)) is not None and change.better is False
    ]
    for name, metric, one, change in sorted(changes, key=lambda item: -near_end(item[-1])):
        if is_beyond_chance(change):
            text = f"Worse than its base where {_where(name, one)}: {run.evaluation.metrics[metric].label} changed by "
            text += f"{with_interval(change, sign=True)}, adjusted {probability(change.p_adjusted)}."
            figures = _figures(name, metric, one) | {"difference": change, "p_adjusted": change.p_adjusted}
            del figures["gap"]
            level = "alarm" if _matters(run, metric, change) else "note"
            brief = f"worse than its base where {_where(name, one)}"
            yield Finding(kind="slices", level=level, text=text, brief=brief, figures=figures)


def _where(name: str, one: Any) -> str:
    return f"{short(name)} is {quoted(one.value)} ({counted(one.examples, 'example')})"


def _figures(name: str, metric: str, one: Any) -> dict[str, Any]:
    p = None if one.gap is None else one.gap.p_adjusted
    figures = {"column": name, "value": one.value, "metric": metric, "tuned": one.tuned.get(metric)}
    return {**figures, "gap": one.gap, "p_adjusted": p}


def _matters(run: RunRecords, metric: str, change: Figure) -> bool:
    """Say whether a change beyond chance is a large part of the whole split's figure."""
    whole = run.evaluation.tuned.get(metric)
    return near_end(change) >= SLICE_GAP * abs((whole.value if whole is not None else 0.0) or 1.0)
