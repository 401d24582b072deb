"""Wording of figures: each number with the digits that its interval supports, and with the interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeGuard, TypeVar

from ftengine.text.words import counted, number, quoted

if TYPE_CHECKING:
    from ftengine.api import Difference, Estimate, Metric
    from ftengine.api.metric import Test

FEW = 6
"""A bootstrap of 1,000 resamples needs at least this many distinct examples for an interval."""

FEW_GROUPS = 20
"""Intervals and tests of fewer groups of rows are marked as approximate. With 20 or more, tests raised a false alarm in
at most 6.5 % of 1,000 simulated sets (docs/evaluation.md)."""


class Figure(Protocol):
    """A value with its interval: an Estimate, a Difference, or a gap."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


FigureT = TypeVar("FigureT", bound=Figure)


def has_value(figure: FigureT | None) -> TypeGuard[FigureT]:
    """Return whether a figure exists and is a finite number."""
    return figure is not None and math.isfinite(figure.value)


def ends(figure: Figure | None) -> tuple[float, float] | None:
    """Return the ends of a figure's interval; None if it has none."""
    if figure is None or figure.low is None or figure.high is None:
        return None
    return figure.low, figure.high


def decimals(figure: Figure) -> int:
    """Return the number of decimals of a figure: two significant digits of its interval's width.

    There are more, up to six, if an end would round to 0 although the interval excludes 0. Without an interval, figures
    below 10 have three decimals, larger ones three digits. The number is negative if even the units are uncertain.
    """
    low, high = ends(figure) or (0.0, 0.0)
    if not high > low:
        size = abs(figure.value) if has_value(figure) else 0.0
        return 3 if size < 10 else 2 - math.floor(math.log10(size))
    places = 1 - math.floor(math.log10(high - low))
    if low > 0 or high < 0:
        places = max(places, -math.floor(math.log10(min(abs(low), abs(high)))))
    return min(6, places)


def plain(figure: Figure | None, *, sign: bool = False) -> str:
    """Return a figure's value without its interval: "0.938"."""
    if not has_value(figure):
        return "–"
    text = number(figure.value, decimals(figure))
    return f"+{text}" if sign and figure.value > 0 else text


def against(tuned: Figure, base: Figure) -> str:
    """Return "1.67 against 2.24": two values of one metric, with the decimals of the more precise one.

    There are more decimals if the values would look the same, as figures on the same examples may differ by little.
    """
    if not has_value(tuned) or not has_value(base):
        return f"{plain(tuned)} against {plain(base)}"
    return " against ".join(_distinct(tuned, base))


def _distinct(first: Figure, second: Figure) -> tuple[str, str]:
    """Return two values with enough decimals to differ, up to six."""
    places = max(decimals(first), decimals(second))
    while number(first.value, places) == number(second.value, places) and first.value != second.value and places < 6:
        places += 1
    return number(first.value, places), number(second.value, places)


def interval(figure: Figure | None, *, sign: bool = False) -> str:
    """Return a figure's interval: "0.910 to 0.959"; "" if it has none."""
    limits = ends(figure)
    if not has_value(figure) or limits is None:
        return ""
    places = decimals(figure)
    return " to ".join(f"{'+' if sign and end > 0 else ''}{number(end, places)}" for end in limits)


def with_interval(figure: Figure | None, *, sign: bool = False) -> str:
    """Return "0.938 (95 % interval 0.910 to 0.959)"."""
    between = interval(figure, sign=sign)
    return f"{plain(figure, sign=sign)} (95 % interval {between})" if between else plain(figure, sign=sign)


def with_ends(figure: Figure | None, *, sign: bool = False) -> str:
    """Return "0.938 (0.910 to 0.959)", for tables."""
    between = interval(figure, sign=sign)
    return f"{plain(figure, sign=sign)} ({between})" if between else plain(figure, sign=sign)


def value_of(metric: Metric, figure: Figure | None, places: int = 0) -> str:
    """Return a metric's value: "82 %" for a proportion, with at least `places` decimals, or "1.67".

    A proportion near 0 or 1 gets enough decimals not to be shown as 0 % or 100 %.
    """
    if not has_value(figure):
        return "undefined"
    if not metric.proportion:
        return plain(figure)
    share = 100 * figure.value
    while places < 4 and 0 < share < 100 and round(share, places) in (0, 100):
        places += 1
    return f"{number(share, places)} %"


def tuned_and_base(metric: Metric, tuned: Figure, base: Figure | None, *, untrained: bool = False) -> str:
    """Return "accuracy 82 %, base 17 %"; `untrained` marks a base with an untrained head."""
    if base is None:
        return f"{metric.label} {value_of(metric, tuned)}"
    if not has_value(tuned) or not has_value(base):
        values = value_of(metric, tuned), value_of(metric, base)
    elif metric.proportion:
        places = 0
        while places < 4 and tuned.value != base.value and not round(100 * (tuned.value - base.value), places):
            places += 1
        values = value_of(metric, tuned, places), value_of(metric, base, places)
    else:
        values = _distinct(tuned, base)
    return f"{metric.label} {values[0]}, base {values[1]}{' (untrained head)' if untrained else ''}"


def change_of(metric: Metric, difference: Difference) -> str:
    """Return a difference with its interval: "+28.0 points (95 % interval +25.0 to +31.0)" for a proportion."""
    if not metric.proportion:
        return with_interval(difference, sign=True)
    low, high = (None if end is None else 100 * end for end in (difference.low, difference.high))
    points = replace(difference, value=100 * difference.value, low=low, high=high)
    between = interval(points, sign=True)
    return f"{plain(points, sign=True)} points{f' (95 % interval {between})' if between else ''}"


def no_interval(metric: str, metrics: Mapping[str, Metric], figures: Mapping[str, Estimate]) -> str:
    """Return why a metric's difference has no interval, given all metrics and all figures of one model."""
    if metric in figures and too_few(figures[metric]):
        return "too few examples to tell"
    fallback = metrics[metric].fallback if metric in metrics else ""
    return (
        f"no interval (see {metrics[fallback].label})" if fallback in metrics and fallback in figures else "no interval"
    )


def too_few(figure: Estimate) -> bool:
    """Return whether a figure has too few examples, or groups of too little worth, for an interval."""
    return (figure.n if figure.worth is None else figure.worth) < FEW


def sample_size(n: int, rows: int | None, kind: str = "distinct example") -> str:
    """Return "92 distinct examples", or for grouped rows "20 groups (160 rows)"."""
    return counted(n, kind) if rows is None else f"{counted(n, 'group')} ({counted(rows, 'row')})"


def left_out(leaked: int) -> str:
    """Return a clause on how many leaked examples figures leave out; "" for none."""
    return f", without the {leaked:,} that are also in training" if leaked else ""


def few_groups(n: int, worth: float | None) -> str:
    """Return a warning about too few groups of rows, by their `worth` in groups of equal size; "" if they suffice."""
    if worth is None or worth >= FEW_GROUPS:
        return ""
    equal = f" of unequal size, worth {math.floor(worth)} equal ones" if n >= FEW_GROUPS else ""
    return (
        f"Intervals and p-values are approximate with {counted(n, 'group')}{equal}: simulations confirm them for "
        f"{FEW_GROUPS} or more."
    )


def at_zero(metric: Metric | None, figure: Figure | None) -> str:
    """Return what a value of 0 means for a metric; "" for other values, or if 0 has no special meaning."""
    return metric.at_zero if metric is not None and has_value(figure) and figure.value == 0 else ""


def untested_slices(column: str, values: str, examples: int, least: int, *, grouped: bool = False) -> str:
    """Return that no slice by a column can be tested, and what to do.

    Args:
        values: number of the column's values, in words.
        examples: number of held-out examples.
        least: examples that a tested slice needs.
        grouped: whether rows come in groups, of which a tested slice needs FEW_GROUPS.
    """
    groups = f" of {FEW_GROUPS} groups" if grouped else ""
    cure = "hold out more examples" if examples < 2 * least else "slice by a column with few values"
    return (
        f"Column {quoted(column)} has {values} in {counted(examples, 'held-out example')}, so no slice has {least:,} "
        f"examples{groups} and none is tested: {cure}."
    )


def probability(p: float | None) -> str:
    """Return a p-value: "p = 0.03", "p < 0.001"."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def test_name(test: Test | None) -> str:
    """Return the name of the test behind a p-value."""
    names = {"mcnemar": "McNemar's exact test", "newcombe": "Newcombe's interval", "sign": "sign test"}
    return {**names, "t": "Student's t-test", "welch": "Welch's t-test"}.get(test or "", "")
