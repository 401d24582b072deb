"""Evaluators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component
from ftengine.api.types import Prediction

if TYPE_CHECKING:
    import numpy as np

    Rows = Mapping[str, np.ndarray]
else:
    Rows = Mapping[str, Any]  # numpy is not imported for a `--help`
"""Columns of a table of predictions, n rows each: the task's keys, (n,) or (n, k), and what `Evaluator.keep` returned.

Texts and lists of different lengths are arrays of objects; a number that a row does not have is nan."""


@dataclass(frozen=True)
class Metric:
    """What an evaluator declares of one of its figures.

    Args:
        label: as people call it, e.g. "macro F1".
        higher_is_better: None where neither more nor less is better.
        proportion: it is a share of trials, between 0 and 1; its interval is a score interval, which keeps a width
            at 0 and 1.
        interval: False where noise makes it larger and resampling larger still: it gets no interval rather than a
            wrong one.
        instead: the metric to decide by where this one has no interval.
        pooled: False where it ranks, bins or correlates what one model says of many examples, so that it means
            nothing over the answers of several folds' models.
        kind: "quality", or "calibration" for how well stated confidence holds.
        at_zero: what 0 means where it is not perfection.
    """

    label: str
    higher_is_better: bool | None = None
    proportion: bool = False
    interval: bool = True
    instead: str = ""
    pooled: bool = True
    kind: str = "quality"
    at_zero: str = ""


class Evaluator(Component):
    """Measures predictions; every figure is a function of the table of predictions and of weights."""

    reads: frozenset[str] = frozenset()
    """Keys of the task's predictions without which nothing can be measured."""
    metrics: Mapping[str, Metric] = {}
    """What `score` returns, by name; where labels or validation decide, an instance sets it anew (`bind`, `fit`)."""

    def keep(self, prediction: Prediction) -> Mapping[str, Any]:
        """Return columns of its own of one example: numbers, or lists equally long for every example.

        For what costs much to compute, such as n-gram counts: it is done once, and not for each resample.
        """
        return {}

    def score(self, rows: Rows, weights: np.ndarray) -> Mapping[str, float]:
        """Return every metric, nan where undefined.

        Args:
            rows: n rows.
            weights: (n,) how often each row counts; 0 is as if it were not there.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ExampleScores:
    """How well each of n examples was answered.

    Args:
        score: (n,) higher is better; nan where unknown.
        right: (n,) 1 where the answer is right, 0 where it is wrong, nan where it is neither.
    """

    score: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """One figure with its interval.

    Args:
        value: the point estimate.
        low, high: ends of the 95 % interval; None where it cannot be computed.
        n: distinct examples it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Tuned minus base on the same examples.

    Args:
        value: the difference of the two point estimates.
        low, high: ends of the paired 95 % interval.
        p: two-sided p-value of no difference.
        better: True where tuned is better beyond chance, False where it is worse, None where neither.
        detectable: the smallest true difference that this many examples would show in four of five tests.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    better: bool | None
    detectable: float | None = None
