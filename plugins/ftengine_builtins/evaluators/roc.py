"""Areas under ROC curves from histograms of scores, which add up over examples."""

from __future__ import annotations

import numpy as np

FINEST, COARSEST = 256, 64
"""Bins of a histogram, at most and at least."""
BUDGET = 4096
"""Statistics for all histograms together: 31 MiB with 1,000 resamples."""
WIDEST = 25.0
"""Log-odds where the outer bins begin: beyond, 1 - p is below float32's resolution."""
INNER = 0.01
"""Log-odds up to which bins are equally wide; further out they are as wide as a fixed share of the log-odds. Scores of
a head that has learnt nothing lie close together around the middle, those of a trained one far apart."""
COARSE = 0.04
"""`uncertainty` from which an area is not given. On simulated scores the areas were off by a tenth of it."""


def bins_for(curves: int) -> int:
    """Return how many bins each of so many curves gets; 0 where that would be too few to rank by."""
    bins = min(FINEST, BUDGET // (2 * curves))
    return bins if bins >= COARSEST else 0


def bin_of(scores: np.ndarray, bins: int, classes: int = 2) -> np.ndarray:
    """Return the bin of each probability: narrow around the even chance, wider away from it, the outer ones open.

    Args:
        scores: any shape, in [0, 1].
        bins: how many there are.
        classes: of which one is right; the even chance is 1 in so many.

    Returns:
        int64 of the same shape, from 0 to bins - 1; a higher score never has a lower bin.
    """
    scores = np.asarray(scores, dtype=np.float64)
    with np.errstate(divide="ignore"):
        odds = np.log(scores) - np.log1p(-scores) + np.log(classes - 1)
    place = np.arcsinh(np.clip(odds, -WIDEST, WIDEST) / INNER) / np.arcsinh(WIDEST / INNER)
    return np.minimum(((place + 1) / 2 * bins).astype(np.int64), bins - 1)


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
    with np.errstate(all="ignore"):
        return np.where(pairs > 0, right / pairs, np.nan)


def uncertainty(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return how far `area` can be from the area of the scores themselves: half the share of pairs in one bin.

    Scores in the outer bins are as good as 0 or 1, and so do not differ.
    """
    pairs, tied = positive.sum(axis=-1) * negative.sum(axis=-1), (positive * negative)[..., 1:-1].sum(axis=-1)
    with np.errstate(all="ignore"):
        return np.where(pairs > 0, tied / (2 * pairs), np.nan)
