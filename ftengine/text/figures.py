"""Figures as words: every number with the digits that its interval supports, and with the interval."""

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
"""Distinct examples below which a bootstrap of 1,000 resamples resolves no interval."""

FEW_GROUPS = 20
"""Groups of rows below which intervals and tests rest on too few. From 20 on, tests raised a false alarm in at most
6.5 % of 1,000 simulated sets (docs/evaluation.md)."""


class Figure(Protocol):
    """A value with its interval: an Estimate, a Difference, or a gap."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


Known = TypeVar("Known", bound=Figure)


def known(figure: Known | None) -> TypeGuard[Known]:
    """Say whether there is a figure and it is defined."""
    return figure is not None and math.isfinite(figure.value)


def ends(figure: Figure | None) -> tuple[float, float] | None:
    """Return the ends of a figure's interval; None where it has none."""
    if figure is None or figure.low is None or figure.high is None:
        return None
    return figure.low, figure.high


def decimals(figure: Figure) -> int:
    """Return how many decimals a figure deserves: two significant digits of its interval's width.

    More, up to six, where an end would be rounded to 0 although the interval leaves 0 out. Without an interval, three,
    fewer from 10 on: three digits in all. Below 0 where not even the units are known.
    """
    low, high = ends(figure) or (0.0, 0.0)
    if not high > low:
        size = abs(figure.value) if known(figure) else 0.0
        return 3 if size < 10 else 2 - math.floor(math.log10(size))
    places = 1 - math.floor(math.log10(high - low))
    if low > 0 or high < 0:
        places = max(places, -math.floor(math.log10(min(abs(low), abs(high)))))
    return min(6, places)


def plain(figure: Figure | None, *, sign: bool = False) -> str:
    """Return a figure's value alone: "0.938"."""
    if not known(figure):
        return "–"
    text = number(figure.value, decimals(figure))
    return f"+{text}" if sign and figure.value > 0 else text


def against(tuned: Figure, base: Figure) -> str:
    """Return "1.67 against 2.24": two values of one metric, with the decimals that the more precise one deserves.

    With more, where they would look the same: what was measured on the same examples may differ by less.
    """
    if not known(tuned) or not known(base):
        return f"{plain(tuned)} against {plain(base)}"
    return " against ".join(_distinct(tuned, base))


def _distinct(one: Figure, other: Figure) -> tuple[str, str]:
    """Return two values with as many decimals as tell them apart, up to six."""
    places = max(decimals(one), decimals(other))
    while number(one.value, places) == number(other.value, places) and one.value != other.value and places < 6:
        places += 1
    return number(one.value, places), number(other.value, places)


def interval(figure: Figure | None, *, sign: bool = False) -> str:
    """Return a figure's interval: "0.910 to 0.959", or "" where there is none."""
    limits = ends(figure)
    if not known(figure) or limits is None:
        return ""
    places = decimals(figure)
    return " to ".join(f"{'+' if sign and end > 0 else ''}{number(end, places)}" for end in limits)


def with_interval(figure: Figure | None, *, sign: bool = False) -> str:
    """Return "0.938 (95 % interval 0.910 to 0.959)"."""
    between = interval(figure, sign=sign)
    return f"{plain(figure, sign=sign)} (95 % interval {between})" if between else plain(figure, sign=sign)


def with_ends(figure: Figure | None, *, sign: bool = False) -> str:
    """Return "0.938 (0.910 to 0.959)", for where there is little room."""
    between = interval(figure, sign=sign)
    return f"{plain(figure, sign=sign)} ({between})" if between else plain(figure, sign=sign)


def value_of(metric: Metric, figure: Figure | None, places: int = 0) -> str:
    """Return a metric's value as people say it: "82 %" of a proportion, with so many decimals at least, or "1.67".

    A proportion near 0 or 1 gets as many as tell it from them.
    """
    if not known(figure):
        return "undefined"
    if not metric.proportion:
        return plain(figure)
    share = 100 * figure.value
    while places < 4 and 0 < share < 100 and round(share, places) in (0, 100):
        places += 1
    return f"{number(share, places)} %"


def tuned_and_base(metric: Metric, tuned: Figure, base: Figure | None, *, untrained: bool = False) -> str:
    """Return "accuracy 82 %, base 17 %", what a user asks first; `untrained` where the base has a fresh head."""
    if base is None:
        return f"{metric.label} {value_of(metric, tuned)}"
    if not known(tuned) or not known(base):
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
    """Return a difference with its interval: "+28.0 points (95 % interval +25.0 to +31.0)" of a proportion."""
    if not metric.proportion:
        return with_interval(difference, sign=True)
    low, high = (None if end is None else 100 * end for end in (difference.low, difference.high))
    points = replace(difference, value=100 * difference.value, low=low, high=high)
    between = interval(points, sign=True)
    return f"{plain(points, sign=True)} points{f' (95 % interval {between})' if between else ''}"


def no_interval(metric: str, metrics: Mapping[str, Metric], figures: Mapping[str, Estimate]) -> str:
    """Say why a metric's difference has no interval, by all declarations and all figures of one model."""
    if metric in figures and too_few(figures[metric]):
        return "too few examples to tell"
    instead = metrics[metric].fallback if metric in metrics else ""
    return f"no interval (see {metrics[instead].label})" if instead in metrics and instead in figures else "no interval"


def too_few(figure: Estimate) -> bool:
    """Say whether a figure rests on too few examples, or groups by what they are worth, for an interval."""
    return (figure.n if figure.worth is None else figure.worth) < FEW


def sample_size(n: int, rows: int | None, kind: str = "distinct example") -> str:
    """Return "92 distinct examples", or where rows come in groups "20 groups (160 rows)"."""
    return counted(n, kind) if rows is None else f"{counted(n, 'group')} ({counted(rows, 'row')})"


def left_out(leaked: int) -> str:
    """Say that figures are made without so many examples; "" where there are none."""
    return f", without the {leaked:,} that training has too" if leaked else ""


def few_groups(n: int, worth: float | None) -> str:
    """Say that a figure rests on too few groups of rows, by how many of equal size they are worth; "" where not."""
    if worth is None or worth >= FEW_GROUPS:
        return ""
    equal = f" of unequal size, worth {math.floor(worth)} equal ones" if n >= FEW_GROUPS else ""
    return (
        f"Intervals and p-values of so few groups are approximate: {counted(n, 'group')}{equal}, and they were checked "
        f"by simulation from {FEW_GROUPS} on."
    )


def at_zero(metric: Metric | None, figure: Figure | None) -> str:
    """Return what it means that a metric is 0; "" where it is not, or means what it says."""
    return metric.at_zero if metric is not None and known(figure) and figure.value == 0 else ""


def untested_slices(column: str, values: str, examples: int, least: int, *, grouped: bool = False) -> str:
    """Say that no slice by a column, which has so many `values` in words, can be tested, and what to do.

    `examples` are held out all together, `least` are those of a slice that is tested; `grouped` where they come in
    groups, which are worth `FEW_GROUPS` then.
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
    """Return what a p-value was made by, in words."""
    names = {"mcnemar": "McNemar's exact test", "newcombe": "Newcombe's interval", "sign": "sign test"}
    return {**names, "t": "Student's t-test", "welch": "Welch's t-test"}.get(test or "", "")
