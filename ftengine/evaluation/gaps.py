"""The difference of a figure between two sets of different examples, which are independent of each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from ftengine.evaluation.bootstrap import Figure
from ftengine.evaluation.proportions import correlation, effective_trials, newcombe, wilson
from ftengine.evaluation.resampling import CONFIDENCE, Interval, standard_error

HALVINGS = 40


@dataclass(frozen=True)
class Gap:
    """One figure minus another, on different examples.

    Args:
        value: the second minus the first.
        first, second: the two values.
        trials: for proportions, the effective trials behind each; None where they are none.
        error: the standard error of the gap, and its degrees of freedom; None where nothing varies.
        correlation: of the two proportions; not 0 where the same examples are on both sides.
    """

    value: float
    first: float
    second: float
    trials: tuple[float, float] | None
    error: tuple[float, float] | None
    correlation: float = 0.0

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the interval of the difference.

        Proportions: Newcombe's of two independent ones, from Wilson's of each (Newcombe 1998, "Interval
        estimation for the difference between independent proportions", method 10). Else Welch's t interval.
        """
        if self.trials is not None:
            first, second = (
                wilson(value, trials, confidence)
                for value, trials in zip((self.first, self.second), self.trials, strict=True)
            )
            return newcombe(self.first, self.second, first, second, self.correlation)
        if self.error is None:
            return None, None
        error, freedom = self.error
        half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
        return self.value - half, self.value + half

    def p(self) -> float | None:
        """Return the two-sided p-value of no gap: the level at which the interval just reaches zero."""
        if self.trials is None:
            if self.error is None:
                return None
            error, freedom = self.error
            return 2 * float(stdtr(freedom, -abs(self.value) / error))
        if self.value == 0:
            return 1.0
        inside, outside = 1.0, 0.0  # confidences whose interval holds zero, and does not
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            low, high = self.interval(middle)
            holds = low is None or high is None or low <= 0 <= high
            inside, outside = (middle, outside) if holds else (inside, middle)
        return 1 - outside

    def to_json(self, confidence: float = CONFIDENCE) -> dict[str, Any]:
        """Return {value, low, high, p} as JSON values."""
        low, high = self.interval(confidence)
        return {"value": self.value, "low": low, "high": high, "p": self.p()}


def gap_between(first: Figure, second: Figure, *, overlap: bool = False) -> Gap | None:
    """Return second minus first of two figures that rest on different examples.

    With `overlap`, some examples are on both sides (the same text under two values of a column), and the figures vary
    together as their resamples do, which weigh an example alike wherever it stands. The degrees of freedom are Welch's
    (1947, "The generalization of 'Student's' problem when several different population variances are involved").
    None where a value is undefined.
    """
    value = second.value - first.value
    if math.isnan(value):
        return None
    sides = (first, second)
    r = correlation(first.resampled, second.resampled) if overlap else 0.0
    if first.trials is not None and second.trials is not None:
        trials = [effective_trials(f.value, f.resampled, f.trials or 0, f.size) for f in sides]
        if trials[0] is None or trials[1] is None:
            return None
        return Gap(value, first.value, second.value, (trials[0], trials[1]), None, r)
    parts = [((standard_error(figure.resampled, figure.size) or 0.0) ** 2, figure.size) for figure in sides]
    errors = [math.sqrt(part) for part, _ in parts]
    variance = max(0.0, sum(part for part, _ in parts) - 2 * r * errors[0] * errors[1])
    if variance == 0 or min(first.size, second.size) < 2:
        return Gap(value, first.value, second.value, None, None)
    freedom = variance**2 / sum(part**2 / (n - 1) for part, n in parts)
    return Gap(value, first.value, second.value, None, (math.sqrt(variance), float(np.maximum(freedom, 1.0))))
