"""Figures of predicted numbers."""

import numpy as np

from ftengine.api import Baseline, ExampleScores
from ftengine.text import number
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher, lower, require_labels
from ftengine_builtins.evaluators.by_part import by_part
from ftengine_builtins.evaluators.weighted import numbers, ratio, totals

CONSTANT = 1e-3
"""Range of the values, as a share of that of the targets, below which a model always answers the same."""


class Regression(WeightedEvaluator):
    """Mean squared and absolute error, R² and Pearson's correlation.

    With several outputs each figure is the mean over outputs. R² is undefined where the targets do not vary,
    the correlation where targets or values do not.
    """

    name = "regression"
    reads = frozenset({"target", "value"})
    metrics = {  # noqa: RUF012
        "mse": lower("mean squared error", "Mean of the squared distance to the right number.", shown_as="r2"),
        "mae": lower("mean absolute error", "Mean distance to the right number."),
        "r2": higher("R²", "Share of the variance that is explained; 0 is as good as always saying the mean."),
        # Values of several models may be shifted against each other.
        "pearson": higher(
            "Pearson correlation", "Linear correlation of answers and right numbers, −1 to 1.", pooled=False
        ),
    }

    def set_labels(self, task, labels):
        require_labels(self, "numbers to predict", ("regression",), task, labels)
        self.outputs = labels.names

    def score_resamples(self, rows, weights):
        return {name: values.mean(axis=1) for name, values in _by_output(rows, weights).items()}

    def score_examples(self, rows):
        """Score the negative squared error, the mean over outputs."""
        score = -((numbers(rows["value"]) - numbers(rows["target"])) ** 2).mean(axis=1)
        return ExampleScores(score, np.full(len(score), np.nan))

    def details(self, rows, estimate):
        """Yield the figures of each of several outputs, and those of always answering the mean."""
        if len(self.outputs) > 1:
            headings = {name: metric.label for name, metric in self.metrics.items()}
            yield from by_part("output", "outputs", self.outputs, headings, lambda w: _by_output(rows, w), estimate)
        if n := len(rows["target"]):
            resamples = self.baseline_resamples(rows, np.ones((1, n)))
            target, value = numbers(rows["target"]), numbers(rows["value"])
            constant = bool((np.ptp(value, axis=0) <= CONSTANT * np.ptp(target, axis=0)).all())
            yield Baseline(
                answer=f"the mean ({_listed(target.mean(axis=0))})",
                share=np.unique(target, axis=0, return_counts=True)[1].max() / n,
                figures={name: float(values[0]) for name, values in resamples.items()},
                given=_listed(value.mean(axis=0)) if constant else "",
                count=n if constant else 0,
                total=n,
            ).fact()

    def baseline_resamples(self, rows, weights):
        target = numbers(rows["target"])
        same = {"target": target, "value": np.broadcast_to(target.mean(axis=0), target.shape)}
        plain = _by_output(same, np.ones((1, len(target))))
        drawn = _by_output(same, weights)
        reached = {name: drawn[name].mean(axis=1) for name in ("mse", "mae", "r2") if np.isfinite(plain[name]).all()}
        return reached | {"pearson": np.zeros(len(weights))}


def _listed(values):
    return ", ".join(number(value) for value in values)


def _by_output(rows, weights):
    """Return each figure by output, (B, outputs) for weights (B, n)."""
    target, value = numbers(rows["target"]), numbers(rows["value"])
    error = value - target
    # Sums of squares around the plain mean lose no digits to its size.
    t, v = target - target.mean(axis=0), value - value.mean(axis=0)
    sums = totals(weights, np.ones(len(t)), t, v, t * t, v * v, t * v, error**2, np.abs(error))
    n = sums[:, :1]
    t, v, tt, vv, tv, squared, absolute = np.split(sums[:, 1:], 7, axis=1)
    with np.errstate(all="ignore"):
        t_variation, v_variation = _variation(n, t, tt), _variation(n, v, vv)
        return {
            "mse": ratio(squared, n),
            "mae": ratio(absolute, n),
            "r2": 1 - squared / t_variation,
            "pearson": np.clip((tv - t * v / n) / np.sqrt(t_variation * v_variation), -1, 1),
        }


def _variation(n, x, xx):
    """Return Σ(x - mean)² from n, Σx and Σx²; nan where it is below the rounding error of the sums."""
    variation = xx - x * x / n
    return np.where(variation > n * np.finfo(np.float64).eps * xx, variation, np.nan)
