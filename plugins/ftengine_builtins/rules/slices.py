"""Rule `slice-gaps`."""

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import is_beyond_chance, near_end
from ftengine.text import Figure, counted, listed, plain, probability, quoted, short, untested_slices, with_interval

SLICE_GAP = 0.05
"""A slice is an alarm from this gap on, relative to the whole split's figure and at the interval's near end. With many
examples even irrelevant differences between groups are beyond chance."""

MOST_SLICES = 5
"""Most slices named of a column; the table has all."""


class SliceGaps(Rule):
    """Names slices on which the tuned model is worse than on the others, and those that tuning made worse.

    All p-values are adjusted over all slices of all columns (Holm 1979). Small slices are not judged. Slices are
    ordered by the near end of their interval, the furthest from 0 first.
    """

    name = "slice-gaps"
    order = 10

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        columns = {name: column for name, column in run.evaluation.slices.items() if column.metric is not None}
        for name, column in columns.items():
            yield from _behind(run, name, column)
        if not run.trained.new_modules:  # an untrained head is no reference
            yield from _worse(run, columns)
        for name, column in run.evaluation.slices.items():
            values = [quoted(part.value) for part in column.slices if part.small]
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
                text = f"By {short(name)}, {are} too small to test: {shown}."
            yield Finding(kind="slices", level="note", text=text, figures={"column": name, "small": len(values)})


def _behind(run: RunRecords, name: str, column: Any) -> Iterator[Finding]:
    """Yield findings on slices that are worse than the other examples beyond chance."""
    higher = bool(run.evaluation.metrics[column.metric].higher_is_better)
    behind = [part for part in column.slices if is_beyond_chance(part.gap) and (part.gap.value < 0) == higher]
    behind.sort(key=lambda part: -near_end(part.gap))
    exceptions = [part for part in behind if not column.is_usual(part)]
    yield from (_exception(run, name, column, part) for part in behind if part not in exceptions)
    yield from (_finding(run, name, column, part) for part in exceptions[:MOST_SLICES])
    if rest := exceptions[MOST_SLICES:]:
        are = "is" if len(rest) == 1 else "are"
        text = f"By {short(name)}, {counted(len(rest), 'more slice')} {are} worse than the other examples beyond "
        text += "chance, with weaker evidence than those named."
        level = "alarm" if any(_matters(run, column.metric, part.gap) for part in rest) else "note"
        figures = {"column": name, "values": [part.value for part in rest]}
        yield Finding(kind="slices", level=level, text=text, figures=figures)


def _exception(run: RunRecords, name: str, column: Any, part: Any) -> Finding:
    """Return the finding that few examples have better figures than the slice with nearly all examples."""
    label, others = run.evaluation.metrics[column.metric].label, column.examples - part.examples
    ahead = part.gap if part.gap.value > 0 else part.gap.negated()
    text = f"Where {short(name)} is not {quoted(part.value)} ({others:,} of {column.examples:,} examples), {label} is "
    text += f"better by {with_interval(ahead)}, adjusted {probability(part.gap.p_adjusted)}."
    return Finding(kind="slices", level="note", text=text, figures=_figures(name, column.metric, part))


def _finding(run: RunRecords, name: str, column: Any, part: Any) -> Finding:
    label, own = run.evaluation.metrics[column.metric].label, plain(part.tuned.get(column.metric))
    text = f"Worse than the others where {_where(name, part)}: {label} {own}, "
    text += f"a gap of {with_interval(part.gap, sign=True)}, adjusted {probability(part.gap.p_adjusted)}."
    before = column.base_gap if part.value == column.worst else None
    if before is not None and near_end(before):
        side = "worse there too" if (before.value > 0) == (part.gap.value > 0) else "better there"
        text += f" The base is {side}: {with_interval(before, sign=True)}."
    brief = f"{label} is {own} where {_where(name, part)}"
    level = "alarm" if _matters(run, column.metric, part.gap) else "note"
    return Finding(kind="slices", level=level, text=text, brief=brief, figures=_figures(name, column.metric, part))


def _worse(run: RunRecords, columns: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on slices that tuning made worse beyond chance."""
    changes = [
        (name, column.metric, part, change)
        for name, column in columns.items()
        for part in column.slices
        if not part.small and (change := part.difference.get(column.metric)) is not None and change.better is False
    ]
    for name, metric, part, change in sorted(changes, key=lambda item: -near_end(item[-1])):
        if is_beyond_chance(change):
            text = f"Worse than its base where {_where(name, part)}: {run.evaluation.metrics[metric].label} changed by "
            text += f"{with_interval(change, sign=True)}, adjusted {probability(change.p_adjusted)}."
            figures = _figures(name, metric, part) | {"difference": change, "p_adjusted": change.p_adjusted}
            del figures["gap"]
            level = "alarm" if _matters(run, metric, change) else "note"
            brief = f"worse than its base where {_where(name, part)}"
            yield Finding(kind="slices", level=level, text=text, brief=brief, figures=figures)


def _where(name: str, part: Any) -> str:
    return f"{short(name)} is {quoted(part.value)} ({counted(part.examples, 'example')})"


def _figures(name: str, metric: str, part: Any) -> dict[str, Any]:
    p = None if part.gap is None else part.gap.p_adjusted
    figures = {"column": name, "value": part.value, "metric": metric, "tuned": part.tuned.get(metric)}
    return {**figures, "gap": part.gap, "p_adjusted": p}


def _matters(run: RunRecords, metric: str, change: Figure) -> bool:
    """Return whether a change beyond chance is a large part of the whole split's figure."""
    figure = run.evaluation.tuned.get(metric)
    return near_end(change) >= SLICE_GAP * abs((figure.value if figure is not None else 0.0) or 1.0)
