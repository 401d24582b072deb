"""Figures of tagged words."""

from collections import Counter

import numpy as np

from ftengine.api import Evaluator, Judgement
from ftengine.errors import RecipeError
from ftengine_builtins.evaluators.ratios import ratio
from ftengine_builtins.tasks.iob2 import OUTSIDE, entities, has_entities


class Entities(Evaluator):
    """Accuracy over words; with tags of the IOB2 scheme, precision, recall and F1 of whole entities.

    An entity is right when its words and its name are (Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050, §2.3):
    figures are over all entities of all examples, as those of the CoNLL shared tasks.
    """

    name = "entities"
    reads = frozenset({"tags", "predicted_tags"})
    higher_is_better = {"token_accuracy": True, "precision": True, "recall": True, "f1": True}  # noqa: RUF012
    parts = "entities"

    def bind(self, context):
        if context.labels is None or context.labels.kind not in ("single", "tags"):
            raise RecipeError(
                f"evaluator 'entities' needs tags to predict, and task {context.task!r} has none. "
                "Take it out of recipe key 'evaluate'."
            )
        self.names = context.labels.names
        self.kinds = sorted({n[2:] for n in self.names if n != OUTSIDE}) if has_entities(context.labels) else []

    def statistics(self, prediction):
        """Return the words that are right, all words, then of each kind of entity: right, predicted, true."""
        true, predicted = prediction["tags"], prediction["predicted_tags"]
        right = sum(a == b for a, b in zip(true, predicted, strict=True))
        row = [float(right), float(len(true))]
        if self.kinds:
            found, known = (set(entities([self.names[i] for i in ids])) for ids in (predicted, true))
            for group in (found & known, found, known):
                count = Counter(kind for kind, _, _ in group)
                row += [float(count[kind]) for kind in self.kinds]
        return row

    def judge(self, prediction):
        """Score the share of words whose tag is right; right where all are. None without words."""
        pairs = list(zip(prediction["tags"], prediction["predicted_tags"], strict=True))
        if not pairs:
            return None
        share = sum(a == b for a, b in pairs) / len(pairs)
        return Judgement(share, share == 1)

    def metrics(self, sums):
        accuracy = {"token_accuracy": ratio(sums[..., 0], sums[..., 1])}
        if not self.kinds:
            return accuracy
        right, predicted, true = (x.sum(axis=-1) for x in self._by_kind(sums))
        return {
            **accuracy,
            "precision": ratio(right, predicted),
            "recall": ratio(right, true),
            "f1": ratio(2 * right, predicted + true),
        }

    def trials(self, sums):
        if not self.kinds:
            return {"token_accuracy": sums[1]}
        _, predicted, true = (x.sum() for x in self._by_kind(sums))
        # F1 = right / ((predicted + true) / 2) is a proportion of so many decisions.
        return {"token_accuracy": sums[1], "precision": predicted, "recall": true, "f1": (predicted + true) / 2}

    def by_part(self, sums):
        right, predicted, true = self._by_kind(sums)
        return {
            "precision": ratio(right, predicted),
            "recall": ratio(right, true),
            "f1": ratio(2 * right, predicted + true),
        }

    def part_trials(self, sums):
        _, predicted, true = self._by_kind(sums)
        return {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}

    def details(self, sums, counts):
        """Return how often each kind of entity is there and found."""
        if not self.kinds:
            return {}
        _, predicted, true = self._by_kind(sums)
        rows = zip(self.kinds, true, predicted, strict=True)
        return {"entities": [{"entity": kind, "support": round(t), "predicted": round(p)} for kind, t, p in rows]}

    def _by_kind(self, sums):
        """Return right, predicted and true, each (..., kinds)."""
        return np.split(sums[..., 2:], 3, axis=-1)
