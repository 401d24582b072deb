"""Figures of one model: the value, the resamples and the interval of each metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, get_args

import numpy as np

from ftengine.api import Display, Estimate, Evaluator, IntervalEvaluator, Metric, Rows, overrides
from ftengine.errors import PluginError
from ftengine.evaluation.intervals import Interval, excess_interval, percentile_interval, score_interval
from ftengine.evaluation.weights import Weights
from ftengine.plugins.attribution import contract_error, each, json_mapping, named
from ftengine.run.evaluation_result import MeasuredMetric


@dataclass(frozen=True)
class ResampledFigure:
    """One metric with its resamples.

    Args:
        metric: its declaration.
        evaluator: name of the evaluator that measures it.
        value: computed with every example once; nan if undefined.
        resampled: (B,) values; nan where undefined, and everywhere if the metric has no interval.
        interval: 95 %.
        n: number of groups, which are distinct examples if the data has no groups.
        size: the equivalent number of groups of equal weight.
        trials: for a proportion, the most independent trials behind it; its interval is a score interval.
        freedom: for a proportion, the degrees of freedom of its variance (`Weights.freedom`).
        rows: number of rows in the groups; None if each distinct example is a group.
        scored: whether it has a score interval; differences then use one, too.
    """

    metric: Metric
    evaluator: str
    value: float
    resampled: np.ndarray
    interval: Interval
    n: int
    size: float
    trials: float | None = None
    scored: bool = False
    freedom: float = math.inf
    rows: int | None = None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, *self.interval, self.n, self.rows, None if self.rows is None else self.size)


def measure(evaluator: Evaluator, rows: Rows, weights: Weights) -> dict[str, ResampledFigure]:
    """Return every metric of a bound and fitted evaluator for n rows of one model; {} if n is 0."""
    if not len(weights):
        return {}
    with np.errstate(all="ignore"):
        plain = _numbers(evaluator, evaluator.score(rows, np.ones(len(weights))))
    trials: Mapping[str, float] = {}
    unequal: Mapping[str, np.ndarray] = {}
    shares: dict[str, tuple[float, np.ndarray]] = {}
    if isinstance(evaluator, IntervalEvaluator):
        with np.errstate(all="ignore"):
            trials, unequal = evaluator.trials(rows), evaluator.example_weights(rows)
        if overrides(evaluator, "proportions"):
            shares = by_resample(partial(evaluator.proportions, rows), weights)
    resampled = _resampled(evaluator, rows, weights)
    figures, freedom = {}, weights.freedom
    for name, metric in evaluator.metrics.items():
        value, values = plain[name], resampled.get(name)
        if values is None or not metric.interval:  # what resamples of it say is not true of it
            values = np.full(weights.resamples, np.nan)
        size, most = weights.worth(unequal.get(name)), None
        if metric.proportion or name in trials:
            most = min(float(trials.get(name, weights.examples)), weights.examples)
            interval = score_interval(value, values, most, size, freedom)
        elif name in shares:
            interval = excess_interval(value, values, *shares[name], weights.examples, size, freedom)
        else:
            interval = percentile_interval(values, size)
        scored = most is not None or name in shares
        under = weights.under(np.asarray(unequal[name]) > 0) if name in unequal else weights
        figures[name] = ResampledFigure(
            metric,
            evaluator.name,
            value,
            values,
            interval,
            under.groups,
            size,
            most,
            scored,
            freedom,
            len(under) if weights.grouped else None,
        )
    return figures


def _numbers(evaluator: Evaluator, scores: Any) -> dict[str, float]:
    """Return an evaluator's scores (PluginError: they are not numbers, or not the metrics that it declares)."""
    if not isinstance(scores, Mapping):
        raise contract_error(evaluator, "score", scores, "a mapping of metrics to numbers")
    if scores.keys() != evaluator.metrics.keys():
        raise PluginError(
            f"{named(evaluator)}: score() returned metrics {sorted(scores)} and declares {sorted(evaluator.metrics)}; "
            "they have to be the same."
        )
    for name, value in scores.items():
        if not isinstance(value, Real):
            raise contract_error(evaluator, "score", value, f"a number for {name!r}")
        # Means of ones and zeros round.
        if evaluator.metrics[name].proportion and not (math.isnan(value) or -1e-6 <= float(value) <= 1 + 1e-6):
            raise contract_error(
                evaluator, "score", value, f"a number from 0 to 1 for {name!r}, which it declares a proportion"
            )
    return {name: float(value) for name, value in scores.items()}


def _resampled(evaluator: Evaluator, rows: Rows, weights: Weights) -> dict[str, np.ndarray]:
    """Return (B,) values by metric, without metrics that have no interval."""
    names = [name for name, metric in evaluator.metrics.items() if metric.interval]
    if not names:
        return {}
    nothing = dict.fromkeys(names, math.nan)

    def values(chunk: np.ndarray) -> np.ndarray:
        if overrides(evaluator, "score_resamples"):
            together = evaluator.score_resamples(rows, chunk)
            return np.column_stack([together[name] for name in names])
        # Of a few rows, a resample may hold none.
        scores = [
            evaluator.score(rows, resample.astype(np.float64)) if resample.any() else nothing for resample in chunk
        ]
        return np.array([[score[name] for name in names] for score in scores])

    return dict(zip(names, weights.resample(values).T, strict=True))


def by_resample(
    values: Callable[[np.ndarray], Mapping[str, np.ndarray]], weights: Weights
) -> dict[str, tuple[float, np.ndarray]]:
    """Return figures by name, plain and (B,), of a function that takes weights (b, n) and returns (b,) by name."""
    if not (plain := values(np.ones((1, len(weights))))):
        return {}
    drawn = weights.resample(lambda chunk: np.column_stack([*values(chunk).values()])).T
    return {name: (float(plain_value[0]), some) for (name, plain_value), some in zip(plain.items(), drawn, strict=True)}


def details(evaluator: Evaluator, rows: Rows, weights: Weights) -> tuple[dict[str, Any], list[Display]]:
    """Return an evaluator's details: facts by name, and displays."""
    facts: dict[str, Any] = {}
    displays: list[Display] = []
    if not overrides(evaluator, "details") or not len(weights):
        return facts, displays

    def estimate(values: Callable[[np.ndarray], np.ndarray], trials: Sequence[float] | None = None) -> list[Estimate]:
        plain, size, result = values(np.ones((1, len(weights))))[0], weights.worth(), []
        for i, (value, drawn) in enumerate(zip(map(float, plain), weights.resample(values).T, strict=True)):
            if trials is None:
                interval = percentile_interval(drawn, size)
            else:
                most = min(float(trials[i]), weights.examples)
                interval = score_interval(value, drawn, most, size, weights.freedom)
            of = (len(weights), size) if weights.grouped else (None, None)
            result.append(Estimate(value, *interval, weights.groups, *of))
        return result

    with np.errstate(all="ignore"):
        for item in each(evaluator, "details", evaluator.details(rows, estimate), (tuple, *get_args(Display))):
            if isinstance(item, tuple):
                if len(item) != 2:
                    raise contract_error(
                        evaluator, "details", item, "or yield pairs of a name and a JSON value, and displays"
                    )
                json_mapping(evaluator, "details", dict([item]))
                facts[item[0]] = item[1]
            else:
                displays.append(item)
    return facts, displays


def estimates(figures: Mapping[str, ResampledFigure]) -> dict[str, Estimate]:
    """Return figures without their resamples."""
    return {name: figure.estimate for name, figure in figures.items()}


def declarations(figures: Iterable[Mapping[str, ResampledFigure]]) -> dict[str, MeasuredMetric]:
    """Return the declarations of the metrics of several sets, with their evaluators."""
    every = {name: figure for some in figures for name, figure in some.items()}
    return {name: MeasuredMetric(**vars(figure.metric), evaluator=figure.evaluator) for name, figure in every.items()}
