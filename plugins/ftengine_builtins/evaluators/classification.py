"""Figures of classifiers, with one label an example or several."""

from copy import copy

import numpy as np

from ftengine.api import Evaluator, Judgement
from ftengine.errors import PluginError, RecipeError
from ftengine_builtins.evaluators.ratios import known, mean_of_known, ratio
from ftengine_builtins.evaluators.roc import COARSE, area, bin_of, bins_for, uncertainty

MOST_LABELS = 100
"""Labels up to which the confusion matrix is reported; its cells grow with their square."""


class Classification(Evaluator):
    """Accuracy, macro F1, ROC AUC and confusion matrix; with several labels an example subset accuracy, micro F1 too.

    Ratios that are 0/0 are undefined and left out of macro F1, as with zero_division=nan in scikit-learn: it
    is the mean over labels that occur in truth or prediction. With one label an example this equals
    scikit-learn's default.

    ROC AUC is each label's against all others, and the mean over labels that occur and are missing somewhere;
    of two exclusive labels it is the second one's. It is made from histograms of the scores, 256 bins up to eight
    labels and 64 at least, narrow around the even chance; scores in one bin count as equal. The details say by how
    much it can differ from the AUC of the scores themselves (`roc_auc_error`); where that is more than 0.04, and
    with more than 32 labels, it is not given.
    """

    name = "classification"
    reads = frozenset({"label", "predicted"})
    higher_is_better = {  # noqa: RUF012
        "accuracy": True,
        "subset_accuracy": True,
        "macro_f1": True,
        "micro_f1": True,
        "roc_auc": True,
    }
    per_model = frozenset({"roc_auc"})
    parts = "labels"
    lean_only = False

    def bind(self, context):
        labels = context.labels
        if labels is None or labels.kind not in ("single", "multi"):
            raise RecipeError(
                f"evaluator 'classification' needs classes to predict, and task {context.task!r} has "
                f"{'no labels' if labels is None else 'numbers; evaluator ' + repr('regression') + ' measures those'}."
                " Take it out of recipe key 'evaluate'."
            )
        self.names = labels.names
        self.multi = labels.kind == "multi"
        # The two scores of two exclusive labels add up to 1: one curve says all.
        self.curves = slice(1, None) if len(self.names) == 2 and not self.multi else slice(None)
        self.bins = bins_for(len(self.names[self.curves]))
        reported = ("subset_accuracy", "macro_f1", "micro_f1") if self.multi else ("accuracy", "macro_f1")
        self.higher_is_better = dict.fromkeys((*reported, "roc_auc") if self.bins else reported, True)

    def statistics(self, prediction):
        """Return whether all is right, 1, then of each label: right, predicted, true (0 or 1), then the histograms.

        Those are (curves, bins) 0 or 1 for examples that have the label, then for those that have not; all 0
        where the task gives no `scores`.
        """
        true, predicted = self._indicators(prediction["label"]), self._indicators(prediction["predicted"])
        whole = np.array([float((true == predicted).all()), 1.0])
        if self.lean_only:
            return whole
        row = np.concatenate([whole, true * predicted, predicted, true])
        return np.concatenate([row, self._histograms(prediction, true)]) if self.bins else row

    def lean(self):
        """Keep accuracy alone: figures by label need numbers for each, and each slice sums of its own."""
        lean = copy(self)
        lean.lean_only, lean.parts = True, ""
        lean.higher_is_better = {self._accuracy: True}
        return lean

    def judge(self, prediction):
        """Score the probability of the truth, with several labels its mean over them; right where all labels are."""
        right = bool(np.array_equal(prediction["label"], prediction["predicted"]))
        scores = prediction.get("scores")
        if scores is None:
            return Judgement(float(right), right)
        scores = np.asarray(scores, dtype=np.float64)
        if not self.multi:
            return Judgement(float(scores[prediction["label"]]), right)
        return Judgement(float(np.where(self._indicators(prediction["label"]) > 0, scores, 1 - scores).mean()), right)

    def counts(self, prediction):
        """Return the example's cell in the confusion matrix."""
        return () if self.multi else ((prediction["label"], prediction["predicted"]),)

    def metrics(self, sums):
        accuracy = sums[..., 0] / sums[..., 1]
        if self.lean_only:
            return {self._accuracy: accuracy}
        right, predicted, true = self._by_label(sums)
        macro_f1 = mean_of_known(ratio(2 * right, predicted + true))
        if self.multi:
            micro_f1 = ratio(2 * right.sum(axis=-1), (predicted + true).sum(axis=-1))
            figures = {"subset_accuracy": accuracy, "macro_f1": macro_f1, "micro_f1": micro_f1}
        else:
            figures = {"accuracy": accuracy, "macro_f1": macro_f1}
        return {**figures, "roc_auc": self._roc_auc(sums)} if self.bins else figures

    def trials(self, sums):
        n = sums[1]
        if self.lean_only:
            return {self._accuracy: n}
        _, predicted, true = self._by_label(sums)
        if self.multi:
            # F1 = right / ((predicted + true) / 2) is a proportion of so many decisions.
            decisions = (predicted + true).sum() / 2
            trials = {"subset_accuracy": n, "macro_f1": decisions, "micro_f1": decisions}
        else:
            trials = {"accuracy": n, "macro_f1": n}
        if self.bins:
            # The most trials that a ranking of few against many corresponds to: with so many, Wilson's interval held
            # the truth in 94 to 99 % of simulated sets (50 to 400 examples, a tenth to a half of them of the class).
            trials["roc_auc"] = 4 * np.minimum(true, n - true)[self.curves].sum()
        return trials

    def by_part(self, sums):
        right, predicted, true = self._by_label(sums)
        figures = {
            "precision": ratio(right, predicted),
            "recall": ratio(right, true),
            "f1": ratio(2 * right, predicted + true),
        }
        if self.bins:
            # Of two exclusive labels, both have the one curve's.
            areas = area(*self._by_bin(sums))
            figures["roc_auc"] = np.broadcast_to(areas, (*sums.shape[:-1], len(self.names)))
        return figures

    def part_trials(self, sums):
        _, predicted, true = self._by_label(sums)
        trials = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}
        return {**trials, "roc_auc": 4 * np.minimum(true, sums[1] - true)} if self.bins else trials

    def details(self, sums, counts):
        """Return what each label is given and asked for, and the confusion matrix (rows: truth)."""
        if self.lean_only:
            return {}
        _, predicted, true = self._by_label(sums)
        details = {
            "labels": [
                {"label": name, "support": round(true[i]), "predicted": round(predicted[i])}
                for i, name in enumerate(self.names)
            ]
        }
        if self.bins:
            details["roc_auc_error"] = known(mean_of_known(uncertainty(*self._by_bin(sums))))
        if not self.multi and len(self.names) <= MOST_LABELS:
            ids = range(len(self.names))
            details["confusion"] = [[counts.get((i, j), 0) for j in ids] for i in ids]
        return details

    @property
    def _accuracy(self):
        return "subset_accuracy" if self.multi else "accuracy"

    def _roc_auc(self, sums):
        """Return the mean area over labels; nan where the bins are too wide for these scores."""
        histograms = self._by_bin(sums)
        error = mean_of_known(uncertainty(*histograms))
        return np.where(error <= COARSE, mean_of_known(area(*histograms)), np.nan)

    def _indicators(self, answer):
        """Return a label id, or a list of 0 and 1, as an array of 0 and 1."""
        if self.multi:
            indicators = np.asarray(answer, dtype=np.float64)
            if indicators.shape != (len(self.names),):
                raise PluginError(f"a multi-label prediction has {len(self.names)} numbers of 0 or 1, not {answer!r}.")
            return indicators
        if not 0 <= answer < len(self.names):
            raise PluginError(f"label id {answer!r} is not one of the {len(self.names)} labels (0 is the first).")
        indicators = np.zeros(len(self.names))
        indicators[answer] = 1
        return indicators

    def _histograms(self, prediction, true):
        curves = len(self.names[self.curves])
        histograms = np.zeros((2, curves, self.bins))
        if (scores := prediction.get("scores")) is not None:
            if len(scores) != len(self.names):
                raise PluginError(f"a prediction has {len(scores)} scores for {len(self.names)} labels.")
            side = np.where(true[self.curves] > 0, 0, 1)
            histograms[side, np.arange(curves), self._bin_of(scores)] = 1
        return histograms.ravel()

    def _bin_of(self, scores):
        return bin_of(scores[self.curves], self.bins, 2 if self.multi else len(self.names))

    def _by_label(self, sums):
        """Return right, predicted and true, each (..., labels)."""
        return np.split(sums[..., 2 : 2 + 3 * len(self.names)], 3, axis=-1)

    def _by_bin(self, sums):
        """Return the histograms of examples that have the label and of those that have not, (..., curves, bins)."""
        histograms = sums[..., 2 + 3 * len(self.names) :]
        shape = (*sums.shape[:-1], 2, len(self.names[self.curves]), self.bins)
        positive, negative = np.moveaxis(histograms.reshape(shape), -3, 0)
        return positive, negative
