"""Thresholds of several labels, fitted on the validation split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_OF_EACH = 20
"""Rows with a label, and rows without it, from which a threshold is chosen: in fewer, chance chooses it."""

USUAL = 0.5
"""The threshold of a label that has fewer: likelier than not."""


def best_thresholds(scores: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return each label's threshold: the one with the highest F1, halfway between two scores.

    Args:
        scores, truth: (n, labels) probabilities, and 0 or 1.
    """
    return {name: best_threshold(scores[:, i], truth[:, i]) for i, name in enumerate(names)}


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold of the highest F1, of several the nearest to 0.5; 0.5 with few examples."""
    positives = int(truth.sum())
    if min(positives, len(truth) - positives) < LEAST_OF_EACH:
        return USUAL
    order = np.argsort(-scores, kind="stable")
    sorted_scores, predicted = scores[order], np.arange(1, len(scores) + 1)
    f1 = 2 * np.cumsum(truth[order]) / (predicted + positives)
    ends = np.append(sorted_scores[1:], 0.0)
    f1[sorted_scores == ends] = -1.0  # equal scores are on one side of any threshold
    halfway = (sorted_scores + ends) / 2
    usual = 2 * truth[scores > USUAL].sum() / ((scores > USUAL).sum() + positives)
    if f1.max() <= usual:
        return USUAL
    best = np.flatnonzero(f1 == f1.max())
    return float(halfway[best[np.abs(halfway[best] - USUAL).argmin()]])
