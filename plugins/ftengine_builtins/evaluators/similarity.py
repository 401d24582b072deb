"""Correlations of the model's similarities with the scores of pairs."""

import numpy as np

from ftengine.api import ExampleScores
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher


class Similarity(WeightedEvaluator):
    """Spearman's and Pearson's correlation of the cosine of two sentences with the score of the pair.

    Both are undefined if cosines or scores do not vary.
    """

    name = "similarity"
    reads = frozenset({"similarity", "score"})
    metrics = {  # noqa: RUF012
        "spearman": higher(
            "Spearman correlation", "Correlation of the ranks of cosines and scores, −1 to 1.", pooled=False
        ),
        "pearson": higher("Pearson correlation", "Linear correlation of cosines and scores, −1 to 1.", pooled=False),
    }

    def score_resamples(self, rows, weights):
        weights = np.asarray(weights, dtype=np.float64)
        x, y = (np.asarray(rows[name], dtype=np.float64) for name in ("similarity", "score"))
        return {
            "spearman": correlation(weights, middle_ranks(x, weights), middle_ranks(y, weights)),
            "pearson": correlation(weights, np.broadcast_to(x, weights.shape), np.broadcast_to(y, weights.shape)),
        }

    def score_examples(self, rows):
        """Score how close the rank of a pair's cosine is to the rank of its score."""
        weights = np.ones((1, len(rows["score"])))
        distance = middle_ranks(rows["similarity"], weights) - middle_ranks(rows["score"], weights)
        return ExampleScores(-np.abs(distance[0]), np.full(weights.shape[1], np.nan))


def middle_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ranks (B, n) of values (n,) weighted by (B, n); equal values share the middle rank."""
    distinct, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct)))
    each = np.add.reduceat(weights[:, order], starts, axis=1) if len(distinct) else weights
    below = np.cumsum(each, axis=1) - each
    return (below + (each + 1) / 2)[:, codes]


def correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (B,) weighted correlations of x and y, all (B, n); nan if one varies by no more than rounding."""
    n = weights.sum(axis=1, keepdims=True)
    tiny = np.finfo(np.float64).eps * n[:, 0]
    x_least, y_least = (tiny * np.abs(z).max(axis=1, initial=0) ** 2 for z in (x, y))
    with np.errstate(all="ignore"):
        x, y = (z - (weights * z).sum(axis=1, keepdims=True) / n for z in (x, y))
        xx, yy, xy = ((weights * z).sum(axis=1) for z in (x * x, y * y, x * y))
        r = xy / np.sqrt(xx * yy)
    return np.where((xx > x_least) & (yy > y_least), np.clip(r, -1, 1), np.nan)
