"""Whether a classifier's confidence is what it says: calibration error, proper scores, temperature."""

import numpy as np
from pydantic import Field
from scipy.special import log_softmax

from ftengine.api import Config, Evaluator
from ftengine.errors import PluginError, RecipeError
from ftengine_builtins.evaluators.ratios import known, ratio
from ftengine_builtins.evaluators.temperature import fit_temperature

AFTER = "ece_after_temperature"


class CalibrationConfig(Config):
    """Options of evaluator calibration."""

    bins: int = Field(15, ge=2, le=100, description="bins of confidence, equally wide from 0 to 1")


class Calibration(Evaluator):
    """Calibration error, Brier score and negative log-likelihood; what a temperature fitted on validation would do.

    An example's confidence is the probability of the label that the model gives. Bins are equally wide, as in
    Guo et al. 2017, arXiv:1706.04599, whose expected calibration error is `ece`: the mean over examples of
    |accuracy - confidence| of their bin. It is biased upwards: chance alone makes a gap in every bin, and
    `ece_by_chance` in the details is what a perfectly calibrated model would show with the same confidences and as
    many examples. `calibration_error` has that noise taken out: the root mean square of the gaps, less what sampling
    adds (the debiased estimator of Kumar, Liang and Ma 2019, arXiv:1909.10155, §5). No interval that was tried holds
    the truth of either often enough, so they have none. `overconfidence` is the mean confidence minus the accuracy: a
    mean, whose interval holds, and so the one to decide by; gaps of different sign cancel in it. `brier` is the summed
    squared distance to the truth's indicator (Brier 1950; 0 to 2), `nll` in nats.

    Where a validation split is left to fit on, one temperature is, and `ece_after_temperature` is the ECE that
    remains on the evaluated examples when logits are divided by it.
    """

    name = "calibration"
    Config = CalibrationConfig
    reads = frozenset({"label", "logits"})
    fits = True
    higher_is_better = {  # noqa: RUF012
        "overconfidence": None,
        "ece": False,
        "calibration_error": False,
        "brier": False,
        "nll": False,
        AFTER: False,
    }
    biased = frozenset({"ece", "calibration_error", AFTER})
    per_model = biased  # bins of several models' confidence mix their errors
    temperature = None

    def bind(self, context):
        labels = context.labels
        if labels is None or labels.kind != "single":
            raise RecipeError(
                f"evaluator 'calibration' needs one label an example, and task {context.task!r} has "
                f"{'no labels' if labels is None else {'multi': 'several', 'regression': 'numbers'}[labels.kind]}. "
                "Take it out of recipe key 'evaluate'."
            )
        self.classes = len(labels.names)
        self._report(fitted=self.temperature is not None)

    def fit(self, predictions):
        """Fit the temperature on validation predictions; without any there are no figures after temperature."""
        examples = ((self._logits(p), p["label"]) for p in predictions) if predictions is not None else ()
        self.temperature = fit_temperature(examples)
        self._report(fitted=self.temperature is not None)

    def statistics(self, prediction):
        """Return 1, Brier score, NLL, then examples, confidence, right of each bin; with a temperature T, bins."""
        logits, label = self._logits(prediction), prediction["label"]
        log_p = log_softmax(logits)
        truth = np.zeros(self.classes)
        truth[label] = 1
        row = [[1.0, ((np.exp(log_p) - truth) ** 2).sum(), -log_p[label]], self._in_bins(log_p, label)]
        if self.temperature is not None:
            row += [[self.temperature], self._in_bins(log_softmax(logits / self.temperature), label)]
        return np.concatenate(row)

    def metrics(self, sums):
        n = sums[..., 0]
        before, after = self._bins(sums)
        _, confidence, right = np.moveaxis(before, -2, 0)
        figures = {
            "overconfidence": ratio((confidence - right).sum(axis=-1), n),
            "ece": _ece(before),
            "calibration_error": _debiased(before),
            "brier": ratio(sums[..., 1], n),
            "nll": ratio(sums[..., 2], n),
        }
        return figures if after is None else {**figures, AFTER: _ece(after)}

    def excess(self, sums):
        before, _ = self._bins(sums)
        return {"overconfidence": (ratio(before[..., 2, :].sum(axis=-1), sums[..., 0]), np.inf)}

    def details(self, sums, counts):
        """Return the reliability diagram, the ECE that chance alone would show, and the same after temperature."""
        before, after = self._bins(sums)
        details = _reliability(before)
        if after is not None:
            details["temperature"] = known(ratio(sums[3 + 3 * self.config.bins], sums[0]))
            details["after"] = _reliability(after)
        return details

    def _report(self, *, fitted):
        names = type(self).higher_is_better
        self.higher_is_better = {name: names[name] for name in names if fitted or name != AFTER}

    def _logits(self, prediction):
        logits = np.asarray(prediction["logits"], dtype=np.float64)
        if logits.shape != (self.classes,) or not 0 <= prediction["label"] < self.classes:
            raise PluginError(
                f"a prediction with label {prediction['label']!r} has logits of shape {logits.shape}; "
                f"there are {self.classes} labels."
            )
        return logits

    def _in_bins(self, log_p, label):
        """Return (3 · bins,): of each bin 0 or 1 examples, its confidence, whether it is right."""
        guess = log_p.argmax()
        confidence = np.exp(log_p[guess])
        place = min(int(confidence * self.config.bins), self.config.bins - 1)
        cells = np.zeros((3, self.config.bins))
        cells[:, place] = 1.0, confidence, float(guess == label)
        return cells.ravel()

    def _bins(self, sums):
        """Return (..., 3, bins) before and after temperature; None where no temperature was fitted."""
        width, shape = 3 * self.config.bins, (*sums.shape[:-1], 3, self.config.bins)
        before = sums[..., 3 : 3 + width].reshape(shape)
        return before, sums[..., 4 + width :].reshape(shape) if sums.shape[-1] > 3 + width else None


def _ece(bins):
    n, confidence, right = np.moveaxis(bins, -2, 0)
    return ratio(np.abs(right - confidence).sum(axis=-1), n.sum(axis=-1))


def _debiased(bins):
    """Return the root of the mean squared gap less its sampling variance; bins of one example tell nothing."""
    n, confidence, right = np.moveaxis(bins, -2, 0)
    accuracy, gap = ratio(right, n), ratio(right - confidence, n)
    squared = np.where(n > 1, gap**2 - ratio(accuracy * (1 - accuracy), n - 1), np.nan)
    there = ~np.isnan(squared)
    total = ratio(np.where(there, n * squared, 0).sum(axis=-1), np.where(there, n, 0).sum(axis=-1))
    return np.sqrt(np.maximum(total, 0))


def _reliability(bins):
    """Return one model's reliability diagram from (3, bins), with its ECE and what chance would make of it."""
    n, confidence, right = bins
    mean = ratio(confidence, n)
    # A gap of variance c(1 - c)/n has the mean size √(2/π · c(1 - c)/n).
    chance = np.where(n > 0, np.sqrt(2 / np.pi * n * np.clip(mean * (1 - mean), 0, None)), 0)
    edges = np.linspace(0, 1, len(n) + 1)
    return {
        "ece": known(_ece(bins)),
        "ece_by_chance": known(ratio(chance.sum(), n.sum())),
        "bins": [
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "n": round(n[i]),
                "confidence": known(mean[i]),
                "accuracy": known(ratio(right[i], n[i])),
            }
            for i in range(len(n))
        ],
    }
