"""Figures of tagged words."""

from collections import Counter

import numpy as np

from ftengine.api import ExampleScores
from ftengine_builtins.evaluators.base import WeightedEvaluator, require_labels, share
from ftengine_builtins.evaluators.baseline import of_classes
from ftengine_builtins.evaluators.by_part import F1, by_part
from ftengine_builtins.evaluators.weighted import numbers, precision_recall_f1, ratio, totals
from ftengine_builtins.tasks.iob2 import OUTSIDE, entities, has_entities


class Entities(WeightedEvaluator):
    """Accuracy over words; with IOB2 tags also precision, recall and F1 of whole entities.

    An entity is right if its words and its name are (Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050, §2.3):
    figures are over all entities of all examples, as in the CoNLL shared tasks.
    """

    name = "entities"
    reads = frozenset({"tags", "predicted_tags"})
    metrics = {  # noqa: RUF012
        "token_accuracy": share("token accuracy", "Share of the words that are tagged rightly."),
        "precision": share("precision", "Share of the entities found that are right."),
        "recall": share("recall", "Share of the entities that are found."),
        "f1": share("F1", "Harmonic mean of precision and recall, of whole entities."),
    }

    def set_labels(self, task, labels):
        require_labels(self, "tags to predict", ("single", "tags"), task, labels)
        self.names = labels.names
        self.kinds = sorted({n[2:] for n in self.names if n != OUTSIDE}) if has_entities(labels) else []
        every = type(self).metrics
        self.metrics = every if self.kinds else {"token_accuracy": every["token_accuracy"]}

    def keep(self, prediction):
        """Return the words that are right, all words, and of each kind of entity: right, predicted, true."""
        true, predicted = prediction["tags"], prediction["predicted_tags"]
        words = {"right": sum(a == b for a, b in zip(true, predicted, strict=True)), "words": len(true)}
        if not self.kinds:
            return words
        given, known = (set(entities([self.names[i] for i in ids])) for ids in (predicted, true))
        by_kind = [Counter(kind for kind, _, _ in group) for group in (given & known, given, known)]
        return {**words, "entities": [count[kind] for count in by_kind for kind in self.kinds]}

    def score_resamples(self, rows, weights):
        right, words = totals(weights, rows["right"], rows["words"]).T
        accuracy = {"token_accuracy": ratio(right, words)}
        if not self.kinds:
            return accuracy
        return {**accuracy, **precision_recall_f1(*(sums.sum(axis=1) for sums in self._by_kind(rows, weights)))}

    def trials(self, rows):
        """Return numbers of words and entities.

        F1 = right / ((predicted + true) / 2) is a proportion of this many decisions.
        """
        words = {"token_accuracy": float(np.sum(rows["words"]))}
        if not self.kinds:
            return words
        _, predicted, true = (float(sums.sum()) for sums in self._totals(rows))
        return {**words, "precision": predicted, "recall": true, "f1": (predicted + true) / 2}

    def score_examples(self, rows):
        """Score the share of words whose tag is right; the example is right if all are. Undefined without words."""
        share = ratio(np.asarray(rows["right"]), np.asarray(rows["words"]))
        return ExampleScores(share, np.where(np.isnan(share), np.nan, share == 1))

    def details(self, rows, estimate):
        """Yield what one tag for all words reaches, and for each kind of entity its figures and frequencies."""
        size, ones = len(self.names), np.ones((1, len(rows["words"])))
        true, given = (_tag_counts(rows[key], size) for key in ("tags", "predicted_tags"))
        if true.any():
            figures = {name: float(values[0]) for name, values in self.baseline_resamples(rows, ones).items()}
            yield of_classes(self.names, true, given, figures, unit="word").fact()
        if not self.kinds:
            return
        _, predicted, true = self._totals(rows)
        yield from by_part(
            "entity",
            "entities",
            self.kinds,
            F1,
            lambda weights: precision_recall_f1(*self._by_kind(rows, weights)),
            estimate,
            {"precision": predicted, "recall": true, "f1": (predicted + true) / 2},
            support=true.astype(int).tolist(),
            predicted=predicted.astype(int).tolist(),
        )

    def baseline_resamples(self, rows, weights):
        """Tag every word with the most frequent tag; for F1 as an entity of the most frequent one-word kind."""
        tag = _tag_counts(rows["tags"], len(self.names)).argmax()
        often = np.array([np.count_nonzero(np.asarray(tags) == tag) for tags in rows["tags"]])
        right_words, words = totals(weights, often, rows["words"]).T
        accuracy = {"token_accuracy": ratio(right_words, words)}
        if not self.kinds:
            return accuracy
        single = np.array([self._single_words(tags) for tags in rows["tags"]])
        right = totals(weights, single[:, single.sum(axis=0).argmax()])[:, 0]
        true = self._by_kind(rows, weights)[2].sum(axis=1)
        return {**accuracy, "f1": precision_recall_f1(right, words, true)["f1"]}

    def _single_words(self, tags):
        """Return the number of one-word entities of each kind, (kinds,)."""
        count = Counter(kind for kind, start, stop in entities([self.names[i] for i in tags]) if stop - start == 1)
        return [count[kind] for kind in self.kinds]

    def _totals(self, rows):
        return (sums[0] for sums in self._by_kind(rows, np.ones((1, len(rows["words"])))))

    def _by_kind(self, rows, weights):
        """Return right, predicted and true entities, each (B, kinds)."""
        return np.split(totals(weights, numbers(rows["entities"])), 3, axis=1)


def _tag_counts(column, size):
    """Return the frequency of each of `size` tags in a column of lists of ids, (size,)."""
    ids = [np.asarray(tags, dtype=np.int64).ravel() for tags in column]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *ids]), minlength=size)
