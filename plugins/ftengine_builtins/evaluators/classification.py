"""Figures of classifiers, with one label an example or several."""

import numpy as np

from ftengine.api import Evaluator
from ftengine.errors import PluginError, RecipeError


class Classification(Evaluator):
    """Accuracy, macro F1 and confusion matrix; with several labels an example subset accuracy, macro and micro F1.

    Ratios that are 0/0 are undefined and left out of macro F1, as with zero_division=nan in scikit-learn: it
    is the mean over labels that occur in truth or prediction. With one label an example this equals
    scikit-learn's default.
    """

    name = "classification"
    reads = frozenset({"label", "predicted"})
    higher_is_better = {"accuracy": True, "subset_accuracy": True, "macro_f1": True, "micro_f1": True}  # noqa: RUF012

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
        reported = ("subset_accuracy", "macro_f1", "micro_f1") if self.multi else ("accuracy", "macro_f1")
        self.higher_is_better = dict.fromkeys(reported, True)

    def statistics(self, prediction):
        """Return whether all is right, 1, then of each label: right, predicted, true (0 or 1)."""
        true, predicted = self._indicators(prediction["label"]), self._indicators(prediction["predicted"])
        return np.concatenate([[float((true == predicted).all()), 1.0], true * predicted, predicted, true])

    def counts(self, prediction):
        """Return the example's cell in the confusion matrix."""
        return () if self.multi else ((prediction["label"], prediction["predicted"]),)

    def metrics(self, sums):
        right, predicted, true = self._by_label(sums)
        accuracy = sums[..., 0] / sums[..., 1]
        macro_f1 = _mean_of_known(_ratio(2 * right, predicted + true))
        if not self.multi:
            return {"accuracy": accuracy, "macro_f1": macro_f1}
        micro_f1 = _ratio(2 * right.sum(axis=-1), (predicted + true).sum(axis=-1))
        return {"subset_accuracy": accuracy, "macro_f1": macro_f1, "micro_f1": micro_f1}

    def trials(self, sums):
        n = sums[1]
        if not self.multi:
            return {"accuracy": n, "macro_f1": n}
        # F1 = right / ((predicted + true) / 2) is a proportion of so many decisions.
        _, predicted, true = self._by_label(sums)
        decisions = (predicted + true).sum() / 2
        return {"subset_accuracy": n, "macro_f1": decisions, "micro_f1": decisions}

    def details(self, sums, counts):
        """Return precision, recall, F1 and support of each label, and the confusion matrix (rows are the truth)."""
        right, predicted, true = self._by_label(sums)
        columns = {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, true),
            "f1": _ratio(2 * right, predicted + true),
        }
        details = {
            "labels": [
                {"label": name}
                | {key: float(values[i]) if np.isfinite(values[i]) else None for key, values in columns.items()}
                | {"support": round(true[i])}
                for i, name in enumerate(self.names)
            ]
        }
        if not self.multi:
            ids = range(len(self.names))
            details["confusion"] = [[counts.get((i, j), 0) for j in ids] for i in ids]
        return details

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

    def _by_label(self, sums):
        """Return right, predicted and true, each (..., labels)."""
        return np.split(sums[..., 2:], 3, axis=-1)


def _ratio(numerator, denominator):
    return np.where(denominator > 0, numerator / denominator, np.nan)


def _mean_of_known(values):
    """Return the mean over the last axis without nan; nan where nothing is known."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))
