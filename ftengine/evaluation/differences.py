"""Differences of figures: between two models on the same examples, and of one model between sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import scipy

from ftengine.api import Difference, Evaluator, IntervalEvaluator, Rows, overrides
from ftengine.evaluation.chance import is_beyond_chance
from ftengine.evaluation.figures import ResampledFigure, by_resample
from ftengine.evaluation.intervals import (
    CONFIDENCE,
    Interval,
    correlation,
    effective_trials,
    percentile_interval,
    score_interval,
    standard_error,
    subtracted_interval,
    variance,
    wilson,
)
from ftengine.evaluation.significance import PValue, detectable, student, t_test
from ftengine.evaluation.weights import Weights

HALVINGS = 40


def compare(
    base: Mapping[str, ResampledFigure],
    tuned: Mapping[str, ResampledFigure],
    exact: Mapping[str, PValue] | None = None,
    *,
    same: bool = False,
) -> dict[str, Difference]:
    """Return tuned minus base for every metric that both have, paired by example.

    Each resample gives an example the same weight in both models, so that its difficulty cancels. The p-value is from
    Student's t on the bootstrap's standard error, which can be adjusted for many tests since it has no lower limit. An
    exact test replaces it, as does the test of another metric that the evaluator declares.

    Args:
        base, tuned: figures by metric, on the same examples with the same weights.
        exact: exact tests by metric, if there are any.
        same: whether both models predict the same for every example. Equal figures do not imply it, and the intervals
            of proportions allow for that.
    """
    both = [name for name in base if name in tuned]
    differences = {name: _difference(base[name], tuned[name], (exact or {}).get(name), same) for name in both}
    for name, difference in differences.items():
        metric = tuned[name].metric
        other = differences.get(metric.tested_as)
        if other is not None and other.p is not None and other.test is not None:
            tested = PValue(other.p, other.test)
            differences[name] = _judged(
                difference.value,
                (difference.low, difference.high),
                tested,
                metric.higher_is_better,
                difference.detectable,
            )
    return differences


def beyond_baseline(
    evaluator: Evaluator,
    rows: Rows,
    weights: Weights,
    figures: Mapping[str, ResampledFigure],
    levels: Mapping[str, float],
) -> dict[str, Difference]:
    """Return a model's figures minus those of a constant answer, by metric, paired by example.

    Other arguments are those of `measure`.

    Args:
        levels: figures of the constant answer by metric. A level that the evaluator does not measure on each resample
            does not depend on the drawn examples.
    """
    answers = {}
    for name, level in levels.items():
        if (figure := figures.get(name)) is not None:
            fixed = np.full_like(figure.resampled, level)
            answers[name] = replace(figure, value=level, resampled=fixed, interval=(level, level))
    if isinstance(evaluator, IntervalEvaluator) and overrides(evaluator, "baseline_resamples") and len(weights):
        for name, (value, drawn) in by_resample(partial(evaluator.baseline_resamples, rows), weights).items():
            figure = figures[name]
            interval: Interval = (None, None)
            if figure.trials is not None:
                interval = score_interval(value, drawn, figure.trials, figure.size, figure.freedom)
            answers[name] = replace(
                figure, value=value, resampled=drawn, interval=interval, scored=figure.trials is not None
            )
    return {name: figure for name, figure in compare(answers, figures).items() if math.isfinite(figure.value)}


def _difference(base: ResampledFigure, tuned: ResampledFigure, exact: PValue | None, same: bool) -> Difference:
    n, size = tuned.rows or tuned.n, min(base.size, tuned.size)
    value = float(_subtract(np.asarray(tuned.value), np.asarray(base.value), n))
    if math.isnan(value):
        return Difference(value, None, None, None, None)
    resampled = _subtract(tuned.resampled, base.resampled, n)
    defined = resampled[~np.isnan(resampled)]
    if size > 1 and len(defined) and not defined.any() and (same or not base.scored):  # the same of every example
        interval: Interval = (0.0, 0.0)
    elif base.scored:
        r = correlation(base.resampled, tuned.resampled)
        interval = subtracted_interval(base.value, tuned.value, _interval_of(base), _interval_of(tuned), r)
    else:
        interval = percentile_interval(resampled, size)
    tested = exact or t_test(value, resampled, size)
    return _judged(value, interval, tested, tuned.metric.higher_is_better, detectable(resampled, size))


def _interval_of(figure: ResampledFigure) -> Interval:
    """Return a figure's interval; for a proportion that never varies over resamples, such as all ties, its value."""
    certain = 0 < figure.value < 1 and figure.n > 1 and variance(figure.resampled) == 0
    return (figure.value, figure.value) if certain else figure.interval


def _judged(
    value: float, interval: Interval, tested: PValue | None, higher: bool | None, least: float | None = None
) -> Difference:
    """Return a difference and whether it is an improvement; `least` is the smallest detectable one."""
    p, test = tested or (None, None)
    difference = Difference(value, *interval, p, None, least, test)
    better = None if higher is None or not is_beyond_chance(difference) else (value > 0) == higher
    return replace(difference, better=better)


def _subtract(tuned: np.ndarray, base: np.ndarray, n: int) -> np.ndarray:
    """Return the difference, set to 0 where the order of summing n numbers explains it."""
    with np.errstate(invalid="ignore"):
        difference = tuned - base
        rounding = n * np.finfo(np.float64).eps * np.maximum(np.abs(tuned), np.abs(base))
        return np.where(np.abs(difference) <= rounding, 0.0, difference)


@dataclass(frozen=True)
class Gap:
    """One figure (the second) minus another, on different examples.

    Args:
        trials: for proportions, the effective trials of each and the degrees of freedom of their variance; None for
            others.
        error: the standard error of the gap, and its degrees of freedom; None if nothing varies.
        correlation: of the two proportions; not 0 if examples are on both sides.
        error_test: the name of the test that uses the standard error.
    """

    value: float
    first: float
    second: float
    trials: tuple[tuple[float, float], tuple[float, float]] | None
    error: tuple[float, float] | None
    correlation: float = 0.0
    error_test: Literal["t", "welch"] = "welch"

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return Newcombe's interval where the figures are proportions, else Welch's t interval."""
        if self.trials is not None:
            (of_first, freedom), (of_second, other) = self.trials
            sides = wilson(self.first, of_first, confidence, freedom), wilson(self.second, of_second, confidence, other)
            return subtracted_interval(self.first, self.second, *sides, self.correlation)
        if self.error is None:
            return None, None
        error, freedom = self.error
        half = float(scipy.special.stdtrit(freedom, (1 + confidence) / 2)) * error
        return self.value - half, self.value + half

    def test(self) -> PValue | None:
        """Return the p-value of no gap: the level at which the interval just reaches zero."""
        if self.trials is None:
            return None if self.error is None else student(self.value / self.error[0], self.error[1], self.error_test)
        if self.value == 0:
            return PValue(1.0, "newcombe")
        inside, outside = 1.0, 0.0  # confidences whose interval holds zero, and does not
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            low, high = self.interval(middle)
            holds = low is None or high is None or low <= 0 <= high
            inside, outside = (middle, outside) if holds else (inside, middle)
        return PValue(1 - outside, "newcombe")

    def difference(self, confidence: float = CONFIDENCE, higher_is_better: bool | None = None) -> Difference:
        """Return the gap as a `Difference`, which is neither better nor worse without a direction."""
        return _judged(self.value, self.interval(confidence), self.test(), higher_is_better)


def gap_between(first: ResampledFigure | None, second: ResampledFigure | None, *, overlap: bool = False) -> Gap | None:
    """Return second minus first for two figures on different examples; None if a value is undefined.

    With `overlap`, some groups are on both sides (a patient, or the same text under two values of a column), and the
    figures vary together as their resamples do, which weigh a group alike wherever it stands. The gap is then tested as
    a paired difference is, with the degrees of freedom of the side that is worth fewer groups; otherwise they are
    Welch's (1947, "The generalization of 'Student's' problem when several different population variances are
    involved").
    """
    if first is None or second is None or not math.isfinite(second.value - first.value):
        return None
    value, sides = second.value - first.value, (first, second)
    if first.trials is not None and second.trials is not None:
        trials = [effective_trials(f.value, f.resampled, f.trials or 0, f.size, f.freedom) for f in sides]
        if trials[0] is None or trials[1] is None:
            return None
        behind = (trials[0], first.freedom), (trials[1], second.freedom)
        r = correlation(first.resampled, second.resampled) if overlap else 0.0
        return Gap(value, first.value, second.value, behind, None, r)
    least = min(first.size, second.size)
    if overlap:
        rows = max(side.rows or side.n for side in sides)
        error = standard_error(_subtract(second.resampled, first.resampled, rows), least)
        of_error = None if error is None else (error, least - 1)
        return Gap(value, first.value, second.value, None, of_error, error_test="t")
    parts = [((standard_error(figure.resampled, figure.size) or 0.0) ** 2, figure.size) for figure in sides]
    varied = sum(part for part, _ in parts)
    if varied == 0 or least < 2:
        return Gap(value, first.value, second.value, None, None)
    freedom = varied**2 / sum(part**2 / (n - 1) for part, n in parts)
    return Gap(value, first.value, second.value, None, (math.sqrt(varied), freedom))


def gaps_between(first: Mapping[str, ResampledFigure], second: Mapping[str, ResampledFigure]) -> dict[str, Difference]:
    """Return second minus first on different examples, for every metric that is not relative."""
    gaps = {name: gap_between(first.get(name), x) for name, x in second.items() if not x.metric.relative}
    better = {name: figure.metric.higher_is_better for name, figure in second.items()}
    return {name: gap.difference(higher_is_better=better[name]) for name, gap in gaps.items() if gap is not None}


def difference_of_differences(
    first: Mapping[str, Difference], second: Mapping[str, Difference]
) -> dict[str, Difference]:
    """Return second minus first for differences on different examples, with an interval but no test."""
    differences = {}
    for name, after in second.items():
        other = first.get(name)
        if other is not None and math.isfinite(after.value - other.value):
            sides = (other.low, other.high), (after.low, after.high)
            interval = subtracted_interval(other.value, after.value, *sides, 0.0)
            differences[name] = Difference(after.value - other.value, *interval, None, None)
    return differences
