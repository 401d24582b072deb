"""Figures of classifiers, with one label an example or several."""

import copy

import numpy as np

from ftengine.api import ExampleScores, Matrix
from ftengine.errors import PluginError
from ftengine_builtins.evaluators.base import WeightedEvaluator, require_labels, share
from ftengine_builtins.evaluators.baseline import always, of_classes, of_sets
from ftengine_builtins.evaluators.by_part import F1, by_part
from ftengine_builtins.evaluators.weighted import (
    counts,
    mean_of_finite,
    means,
    numbers,
    precision_recall_f1,
    ratio,
    totals,
)

MOST_CELLS, MOST_SHOWN = 100, 20
"""Labels up to which confusions are kept, and shown; their cells grow with the labels' square."""
BLOCK = 2**20
"""Weights that are ranked at once: 8 MiB."""


class Classification(WeightedEvaluator):
    """Accuracy, macro F1, ROC AUC and confusion matrix; with several labels an example subset accuracy, micro F1 too.

    Ratios that are 0/0 are undefined and left out of macro F1, as with zero_division=nan in scikit-learn: it is the
    mean over labels that occur in truth or prediction. With one label an example this equals scikit-learn's default.

    ROC AUC is each label's against all others, ties by half, and the mean over labels that occur and are missing
    somewhere; of two exclusive labels it is the second one's. It is undefined where the task gives no `scores`.
    """

    name = "classification"
    reads = frozenset({"label", "predicted"})
    metrics = {  # noqa: RUF012
        "accuracy": share("accuracy", "Share of the examples that are answered rightly."),
        "subset_accuracy": share("subset accuracy", "Share of the examples of which every label is right."),
        "macro_f1": share(
            "macro F1", "Mean over the labels of F1, so that a rare label counts as much as a frequent one."
        ),
        "micro_f1": share("micro F1", "F1 of all decisions about labels together."),
        "roc_auc": share(
            "ROC AUC",
            "How often an example with the label scores higher for it than one without it; 0.5 is chance.",
            pooled=False,
        ),
    }

    def set_labels(self, task, labels):
        require_labels(self, "classes to predict", ("single", "multi"), task, labels)
        self.names = labels.names
        self.multi = labels.kind == "multi"
        # The two scores of two exclusive labels add up to 1: one curve says all.
        self.curves = slice(1, None) if len(self.names) == 2 and not self.multi else slice(None)
        reported = ("subset_accuracy", "macro_f1", "micro_f1") if self.multi else ("accuracy", "macro_f1")
        self.metrics = {name: type(self).metrics[name] for name in (*reported, "roc_auc")}

    def score_resamples(self, rows, weights):
        right, predicted, true = self._by_label(rows, weights)
        scores = {"macro_f1": mean_of_finite(precision_recall_f1(right, predicted, true)["f1"])}
        if "roc_auc" in self.metrics:
            scores["roc_auc"] = mean_of_finite(self._areas(rows, weights))
        if not self.multi:
            return {"accuracy": ratio(right.sum(axis=1), true.sum(axis=1)), **scores}
        whole = (self._answers(rows, "label") == self._answers(rows, "predicted")).all(axis=1)
        micro = precision_recall_f1(*(sums.sum(axis=1) for sums in (right, predicted, true)))["f1"]
        return {"subset_accuracy": means(weights, whole)[:, 0], "micro_f1": micro, **scores}

    def for_slices(self):
        """Return an evaluator without ROC AUC, which is slower than all other figures."""
        quick = copy.copy(self)
        quick.metrics = {name: metric for name, metric in self.metrics.items() if name != "roc_auc"}
        return quick

    def trials(self, rows):
        """Return the number of decisions behind F1 of several labels, and of trials equivalent to an AUC.

        F1 = right / ((predicted + true) / 2) is a proportion of this many decisions. A ranking of few examples against
        many counts as at most 4 times the few: with this number Wilson's interval covered the truth in 94 to 99 % of
        simulated sets (50 to 400 examples, a tenth to a half of them of the class).
        """
        _, predicted, true = self._by_label(rows, np.ones((1, len(rows["label"]))))
        n = len(rows["label"])
        decisions = float((predicted + true).sum() / 2)
        trials = {"macro_f1": decisions, "micro_f1": decisions} if self.multi else {}
        if "roc_auc" in self.metrics:
            trials["roc_auc"] = 4 * float(np.minimum(true, n - true)[0, self.curves].sum())
        return trials

    def score_examples(self, rows):
        """Score the probability of the true label, with several labels the mean; right if all labels are.

        For mistakes, also return the probability of the wrong answer, with several labels of the most probable wrong
        decision.
        """
        label, predicted, scores = self._answers(rows, "label"), self._answers(rows, "predicted"), self._scores(rows)
        same = label == predicted
        right = (same.all(axis=1) if self.multi else same).astype(np.float64)
        if scores is None:
            return ExampleScores(right, right)
        if self.multi:
            score = np.where(label > 0, scores, 1 - scores).mean(axis=1)
            wrong = np.where(same, 0, np.where(predicted > 0, scores, 1 - scores)).max(axis=1)
        else:
            score, wrong = (np.take_along_axis(scores, ids[:, None], axis=1)[:, 0] for ids in (label, predicted))
        return ExampleScores(score, right, np.where(right > 0, np.nan, wrong))

    def details(self, rows, estimate):
        """Yield each label's figures, and with one label an example the confusion matrix (rows: truth)."""
        _, predicted, true = (sums[0] for sums in self._by_label(rows, np.ones((1, len(rows["label"])))))
        trials = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}
        headings = F1

        def figures(weights):
            by_label = dict(precision_recall_f1(*self._by_label(rows, weights)))
            if "roc_auc" in headings:  # of two exclusive labels, both have the one curve's
                by_label["roc_auc"] = np.broadcast_to(self._areas(rows, weights), by_label["f1"].shape)
            return by_label

        if self._scores(rows) is not None:
            headings = {**F1, "roc_auc": "ROC AUC"}
            trials["roc_auc"] = 4 * np.minimum(true, len(rows["label"]) - true)
        counted = {"support": true.astype(int).tolist(), "predicted": predicted.astype(int).tolist()}
        yield from by_part("label", "labels", self.names, headings, figures, estimate, trials, **counted)
        if (baseline := self._baseline(rows, predicted, true)) is not None:
            yield baseline.fact()
        if not self.multi and len(self.names) <= MOST_CELLS:
            cells = np.zeros((len(self.names), len(self.names)), dtype=int)
            np.add.at(cells, (self._answers(rows, "label"), self._answers(rows, "predicted")), 1)
            yield "confusion", cells.tolist()
            if len(self.names) <= MOST_SHOWN:
                labels = {"row_label": "truth", "column_label": "answer"}
                yield Matrix(title="Confusion matrix", names=self.names, cells=cells.tolist(), **labels)

    def baseline_resamples(self, rows, weights):
        label = self._answers(rows, "label")
        if self.multi:
            return always(label, weights)
        return {"accuracy": means(weights, label == np.bincount(label).argmax())[:, 0]}

    def _baseline(self, rows, predicted, true):
        """Return what constant answers reach; macro F1 is at most 1 / labels then."""
        ranking = {} if self._scores(rows) is None else {"roc_auc": 0.5}
        if self.multi:
            baseline = of_sets(self.names, self._answers(rows, "label"), self._answers(rows, "predicted"))
            return baseline and baseline.model_copy(update={"figures": baseline.figures | ranking})
        most = float(ratio(true.max(), true.sum()))
        figures = {"accuracy": most, "macro_f1": 1 / max(1, np.count_nonzero(true)), **ranking}
        return of_classes(self.names, true, predicted, figures)

    def _by_label(self, rows, weights):
        """Return the numbers of right, predicted and true examples of each label, each (B, labels)."""
        true, predicted = self._answers(rows, "label"), self._answers(rows, "predicted")
        if self.multi:
            return np.split(totals(weights, true * predicted, predicted, true), 3, axis=1)
        size = len(self.names)
        right = np.where(true == predicted, true, size)
        return counts(weights, right, size + 1)[:, :size], counts(weights, predicted, size), counts(weights, true, size)

    def _areas(self, rows, weights):
        """Return the area under each label's ROC curve, (B, curves); nan if the task gives no scores."""
        scores, true = self._scores(rows), self._answers(rows, "label")
        columns = range(len(self.names))[self.curves]
        if scores is None:
            return np.full((len(weights), len(columns)), np.nan)
        positive = [true[:, c] > 0 if self.multi else true == c for c in columns]
        return np.column_stack([roc_auc(of, scores[:, c], weights) for of, c in zip(positive, columns, strict=True)])

    def _answers(self, rows, key):
        """Return label ids (n,), or with several labels per example zeros and ones, (n, labels)."""
        if self.multi:
            return self._by_columns(rows, key)
        ids, size = np.asarray(rows[key]).astype(np.int64), len(self.names)
        wrong = (ids < 0) | (ids >= size)
        if wrong.any():
            raise PluginError(f"label id {ids[wrong][0]} is not one of the {size} labels (0 is the first).")
        return ids

    def _scores(self, rows):
        """Return (n, labels), None where the task gives none."""
        return None if rows.get("scores") is None else self._by_columns(rows, "scores")

    def _by_columns(self, rows, key):
        """Return a column with one number per label as (n, labels)."""
        try:
            values = numbers(rows[key])
        except ValueError:  # lists of several lengths
            values = np.zeros((len(rows[key]), 0))
        if len(values) and values.shape[1] != len(self.names):
            raise PluginError(f"a prediction has {len(self.names)} numbers in {key!r}, one for each label.")
        return values


def roc_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve, (B,): the share of pairs that scores (n,) rank rightly, ties by half.

    It is nan if there is no pair, or if a score is nan; `positive`, (n,), marks the examples of the class, and weights
    are (B, n). Mann and Whitney 1947; Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    if np.isnan(scores).any() or not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores)
    ranked, mine = scores[order], np.flatnonzero(positive[order])
    first, last = (np.searchsorted(ranked, ranked[mine], side) for side in ("left", "right"))
    areas, step = [], max(1, BLOCK // len(scores))
    for start in range(0, len(weights), step):
        ordered = np.take(weights[start : start + step], order, axis=1)
        below = np.zeros((len(ordered), len(scores) + 1))
        np.cumsum(ordered, axis=1, out=below[:, 1:])
        own = ordered[:, mine].astype(np.float64)
        positives, every = own.sum(axis=1), below[:, -1]
        # Each positive beats what has a lower score and half of what has the same; among positives that is P² / 2.
        beaten = (own * (below[:, first] + below[:, last])).sum(axis=1) / 2 - positives**2 / 2
        areas.append(ratio(beaten, positives * (every - positives)))
    return np.concatenate(areas)
