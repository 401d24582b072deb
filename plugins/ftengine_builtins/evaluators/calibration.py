"""Whether a classifier's confidence equals its accuracy: calibration error, proper scores, temperature."""

import math
from functools import partial

import numpy as np
import scipy
from pydantic import Field

from ftengine import api
from ftengine.api import FittedEvaluator, Line, LineChart, Metric
from ftengine.errors import PluginError
from ftengine_builtins.evaluators.base import WeightedEvaluator, lower, require_labels
from ftengine_builtins.evaluators.weighted import counts, finite_or_none, means, numbers, ratio

AFTER = "ece_after_temperature"
LOWEST, HIGHEST = 0.05, 20.0
"""The temperatures that are looked at."""
NEAR = 1.01
"""Factor by which a fitted temperature differs from the ends at least, where it is not one of them: at an end the
likelihood has no maximum, as where all answers are right."""

LEAST_FITTED = 100
"""Validation examples from which a temperature is fitted for answers. In 200 simulated sets each (2 to 10 classes,
logits 1 to 3 times too sharp) it was within a factor of 1.5 of the right one in 86 to 100 % of those of 100 examples,
and in 57 to 92 % of those of 25."""

_biased = partial(lower, interval=False, fallback="overconfidence", pooled=False, kind="calibration")
"""A metric that noise makes larger, and resampling larger still, made of bins of one model's confidence."""


class Calibration(WeightedEvaluator, FittedEvaluator):
    """Calibration error, Brier score and negative log-likelihood, also after a temperature fitted on validation.

    An example's confidence is the probability of the label that the model gives. Bins are equally wide, as in Guo et
    al. 2017, arXiv:1706.04599, whose expected calibration error is `ece`: the mean over examples of |accuracy -
    confidence| of their bin. It is biased upwards: chance alone makes a gap in every bin, and `ece_by_chance` in the
    details is what a perfectly calibrated model would show with the same confidences and as many examples.
    `calibration_error` has that noise removed: the root mean square of the gaps, less the sampling variance (the
    debiased estimator of Kumar, Liang and Ma 2019, arXiv:1909.10155, §5). Both have no interval, as none that was tried
    covers the truth often enough. `overconfidence` is the mean confidence minus the accuracy. Its interval is reliable,
    so decide by it; gaps of different sign cancel in it. `brier` is the summed squared distance to the truth's
    indicator (Brier 1950; 0 to 2), `nll` in nats.

    If there is a validation split besides the evaluated one, a temperature is fitted on it, and `ece_after_temperature`
    is the ECE on the evaluated examples when logits are divided by it.
    """

    name = "calibration"

    class Config(api.Config):
        bins: int = Field(15, ge=2, le=100, description="bins of confidence, equally wide from 0 to 1")

    reads = frozenset({"label", "logits"})
    metrics = {  # noqa: RUF012
        "overconfidence": Metric(
            "overconfidence",
            kind="calibration",
            meaning="Mean confidence minus accuracy; above 0, the model is overconfident.",
        ),
        "ece": _biased("expected calibration error (ECE)", "Mean distance between confidence and accuracy."),
        "calibration_error": _biased(
            "calibration error beyond chance",
            "Root mean square distance of confidence and accuracy, less what sampling noise alone makes.",
            at_zero="none beyond chance",
        ),
        "brier": lower("Brier score", "Squared distance of the probabilities to the truth, 0 to 2."),
        "nll": lower("negative log-likelihood", "Negative log-probability of the right label."),
        AFTER: _biased(
            "ECE after temperature",
            "ECE that remains when logits are divided by a temperature fitted on the validation split.",
        ),
    }
    temperature = None

    def set_labels(self, task, labels):
        require_labels(self, "one label an example", ("single",), task, labels)
        self.classes = len(labels.names)
        self._declare()

    def fit(self, rows):
        """Fit the temperature on the validation split; without one there are no figures after temperature."""
        self.temperature = None if rows is None or not len(rows["label"]) else fit_temperature(*self._logits(rows))
        self._declare()

    def score(self, rows, weights):
        weights = np.asarray(weights)
        bins = self._bins(rows, weights)
        scores = {"ece": _ece(bins), "calibration_error": _debiased(bins)}
        if self.temperature is not None:
            scores[AFTER] = _ece(self._bins(rows, weights, self.temperature))
        return {**super().score(rows, weights), **scores}

    def score_resamples(self, rows, weights):
        """Return the metrics that have an interval; `score` has the others."""
        logits, label = self._logits(rows)
        log_p = scipy.special.log_softmax(logits, axis=1)
        confidence, right = _confidence(log_p, label)
        true = log_p[np.arange(len(label)), label]
        # Σ (p - truth)² = Σ p² - 2 p(truth) + 1
        brier = np.square(np.exp(log_p)).sum(axis=1) - 2 * np.exp(true) + 1
        columns = means(weights, confidence - right, brier, -true)
        return dict(zip(("overconfidence", "brier", "nll"), columns.T, strict=True))

    def proportions(self, rows, weights):
        logits, label = self._logits(rows)
        return {"overconfidence": means(weights, _confidence(logits, label)[1])[:, 0]}

    def details(self, rows, estimate):
        """Yield the reliability diagram and the ECE of a perfectly calibrated model, both also after temperature."""
        ones = np.ones(len(rows["label"]))
        before = _reliability(self._bins(rows, ones))
        yield from before.items()
        lines = [_line("as it answers", before)]
        if self.temperature is not None:
            after = _reliability(self._bins(rows, ones, self.temperature))
            yield "temperature", self.temperature
            yield "after", after
            lines.append(_line("with temperature", after))
        yield LineChart(
            title="Reliability diagram",
            x_label="confidence",
            y_label="accuracy",
            lines=tuple(lines),
            ends=(0.0, 1.0),
            diagonal=True,
            caption="On the dotted diagonal, confidence equals accuracy; below it, the model is overconfident.",
        )

    def _declare(self):
        every, fitted = type(self).metrics, self.temperature is not None
        self.metrics = {name: every[name] for name in every if fitted or name != AFTER}

    def _logits(self, rows):
        """Return logits (n, labels) and label ids (n,)."""
        logits, label = numbers(rows["logits"]), np.asarray(rows["label"]).astype(np.int64)
        wrong = label[(label < 0) | (label >= self.classes)]
        if logits.shape[1] != self.classes or len(wrong):
            raise PluginError(
                f"predictions have {logits.shape[1]} logits and a label {wrong[0] if len(wrong) else label[0]}; "
                f"there are {self.classes} labels."
            )
        return logits, label

    def _bins(self, rows, weights, temperature=1.0):
        """Return (3, bins): the examples of each bin, their summed confidence, and the number of right ones."""
        logits, label = self._logits(rows)
        confidence, right = _confidence(scipy.special.log_softmax(logits / temperature, axis=1), label)
        bins = self.config.bins
        places = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        return counts(np.stack([weights, weights * confidence, weights * right]), places, bins)


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """Return the temperature T, 0.05 to 20, with the least mean negative log-likelihood of softmax(logits / T).

    Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks", arXiv:1706.04599, §4.2. It is 1 if
    all temperatures are equal. Logits are (n, classes), and label has the (n,) ids of the true classes.
    """
    logits = logits - logits.max(axis=1, keepdims=True)
    if not logits.any():
        return 1.0
    places = np.arange(len(label)), label

    def loss(log_t: float) -> float:
        return -float(scipy.special.log_softmax(logits / math.exp(log_t), axis=1)[places].mean())

    from scipy.optimize import minimize_scalar  # slow to import, for the one place that needs it

    ends = math.log(LOWEST), math.log(HIGHEST)
    return math.exp(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-7}).x)


def best_temperature(logits: np.ndarray, label: np.ndarray) -> float | None:
    """Return `fit_temperature`.

    None if there is no optimum: all answers are right, or the optimum is at an end of the range.
    """
    temperature = fit_temperature(logits, label)
    inside = LOWEST * NEAR < temperature < HIGHEST / NEAR
    return temperature if inside and (logits.argmax(axis=1) != label).any() else None


def _confidence(log_p, label):
    """Return the probability of the likeliest label, and whether it is the true one (0 or 1), each (n,)."""
    return np.exp(log_p.max(axis=1)), (log_p.argmax(axis=1) == label).astype(np.float64)


def _ece(bins):
    n, confidence, right = bins
    return float(ratio(np.abs(right - confidence).sum(), n.sum()))


def _debiased(bins):
    """Return the root of the mean squared gap less its sampling variance; bins of one example are left out."""
    n, confidence, right = bins[:, bins[0] > 1]
    accuracy, gap = right / n, (right - confidence) / n
    squared = gap**2 - accuracy * (1 - accuracy) / (n - 1)
    return float(np.sqrt(np.maximum(ratio((n * squared).sum(), n.sum()), 0)))


def _reliability(bins):
    """Return one model's reliability diagram from (3, bins), with its ECE and the ECE by chance."""
    n, confidence, right = bins
    mean, accuracy = ratio(confidence, n), ratio(right, n)
    # A gap of variance c(1 - c)/n has the mean size √(2/π · c(1 - c)/n).
    chance = np.where(n > 0, np.sqrt(2 / np.pi * n * np.clip(mean * (1 - mean), 0, None)), 0)
    edges = np.linspace(0, 1, len(n) + 1).tolist()
    rows = zip(edges, edges[1:], n, mean, accuracy, strict=False)
    return {
        "ece": finite_or_none(_ece(bins)),
        "ece_by_chance": finite_or_none(ratio(chance.sum(), n.sum())),
        "bins": [
            {
                "low": low,
                "high": high,
                "n": round(count),
                "confidence": finite_or_none(stated),
                "accuracy": finite_or_none(held),
            }
            for low, high, count, stated, held in rows
        ],
    }


def _line(name, reliability):
    points = [(row["confidence"], row["accuracy"]) for row in reliability["bins"] if row["n"]]
    return Line(name=name, points=tuple(points))
