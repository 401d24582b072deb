"""Areas under ROC curves from histograms of scores, which add up over examples."""

from __future__ import annotations

import numpy as np

FINEST, COARSEST = 128, 16
"""Bins of a histogram, at most and at least."""
BUDGET = 8192
"""Statistics for all histograms together: 64 MiB with 1,000 resamples."""
LOWEST, HIGHEST = -25.0, 17.0
"""Log-odds of the outer bins. Above, 1 - p is below float32's resolution; below, p is less than 2e-11."""


def bins_for(curves: int) -> int:
    """Return how many bins each of so many curves gets; 0 where that would be too few to rank by."""
    bins = min(FINEST, BUDGET // (2 * curves))
    return bins if bins >= COARSEST else 0


def bin_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each probability: equally wide in log-odds, the outer ones open.

    Args:
        scores: any shape, in [0, 1].
        bins: how many there are.

    Returns:
        int64 of the same shape, from 0 to bins - 1; a higher score never has a lower bin.
    """
    scores = np.asarray(scores, dtype=np.float64)
    with np.errstate(divide="ignore"):
        odds = np.log(scores) - np.log1p(-scores)
    share = (np.clip(odds, LOWEST, HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
    return np.minimum((share * bins).astype(np.int64), bins - 1)


def area(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve: the share of pairs that the scores rank rightly, ties by half.

    Mann and Whitney 1947; Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.

    Args:
        positive, negative: (..., bins) how many examples of the class, and of the others, are in each bin.

    Returns:
        (...); nan where there is no pair.
    """
    below = np.cumsum(negative, axis=-1) - negative
    right = (positive * (below + negative / 2)).sum(axis=-1)
    pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
    return np.where(pairs > 0, right / pairs, np.nan)


def uncertainty(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return how far `area` can be from the area of the scores themselves: half the share of pairs in one bin."""
    pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
    return np.where(pairs > 0, (positive * negative).sum(axis=-1) / (2 * pairs), np.nan)
