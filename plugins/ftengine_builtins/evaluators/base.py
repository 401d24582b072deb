"""Shared by the built-in evaluators: declaring metrics, scoring resamples, refusing tasks."""

from collections.abc import Collection
from typing import Any

import numpy as np

from ftengine.api import Evaluator, IntervalEvaluator, Labels, Metric
from ftengine.errors import RecipeError


def higher(label: str, meaning: str, **declared: Any) -> Metric:
    return Metric(label, higher_is_better=True, meaning=meaning, **declared)


def lower(label: str, meaning: str, **declared: Any) -> Metric:
    return Metric(label, higher_is_better=False, meaning=meaning, **declared)


def share(label: str, meaning: str, **declared: Any) -> Metric:
    """Declare a metric that is a proportion, higher being better."""
    return higher(label, meaning, proportion=True, **declared)


class WeightedEvaluator(IntervalEvaluator):
    """An evaluator that scores resamples at once; its `score` is that of a single resample."""

    def score(self, rows, weights):
        scores = self.score_resamples(rows, np.asarray(weights)[None])
        return {name: float(values[0]) for name, values in scores.items()}

    def score_resamples(self, rows, weights):
        """Return (B,) by metric for weights (B, n)."""
        raise NotImplementedError


HAS = {
    "single": "one label an example",
    "multi": "several labels an example",
    "regression": "numbers, which evaluator 'regression' measures",
    "tags": "a tag for each word",
}
"""What a task has, by the kind of its labels."""


def require_labels(evaluator: Evaluator, needs: str, kinds: Collection[str], task: str, labels: Labels | None) -> None:
    """Refuse a task whose labels an evaluator cannot measure (RecipeError, with the kinds that it can)."""
    if labels is None or labels.kind not in kinds:
        raise RecipeError(
            f"evaluator {evaluator.name!r} needs {needs}, and task {task!r} has "
            f"{'no labels' if labels is None else HAS[labels.kind]}. Take it out of recipe key 'evaluate'."
        )
