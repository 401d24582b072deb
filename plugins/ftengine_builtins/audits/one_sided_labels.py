"""Rows of one class that were labelled as another, found by how many rows look more like the other class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.word_scores import WordRidge, one_hot

PENALTY = 3.0
SURE = 0.01
"""Probability by chance up to which rows of one look like the other in one direction."""
LEAST = 0.1
"""Share of a class's rows that are another one's, at the interval's near end, from which it is said."""
TIMES = 2
"""How many times the mirror image, and what any other two classes with one of these come to."""
ABOVE = 0.7
"""Share of a class's own rows that prefer it by more than the row that others are compared with: few rows of another
class do, and of rows that are its own but for their label, as many."""
SHOWN = 0.5
"""The same share, at least, where a row has to be preferred positively: of classes whose rows mostly say nothing, which
look like the most frequent class, nothing is known."""
FEWEST = 20
"""Rows of a class below which it is left out."""


@dataclass(frozen=True)
class OneSided:
    """Rows labelled as one class that look like another.

    Args:
        label, other: the two classes.
        rows: numbers of the rows labelled `label` that look more like `other` than 0.3 of its own rows do, the most
            confident first. About 0.7 (ABOVE) of relabelled rows do.
        n: rows labelled `label`.
        mirror, mirror_n: the same for `other`: number of such rows, and of its rows.
        share, low, high: share of the rows labelled `label` that belong to `other`, with its 95 % interval (Wilson).
    """

    label: int
    other: int
    rows: tuple[int, ...]
    n: int
    mirror: int
    mirror_n: int
    share: float
    low: float
    high: float


def find_one_sided(ridge: WordRidge, labels: np.ndarray) -> OneSided | None:
    """Find two of at least three classes of which one contains rows of the other, but not the reverse.

    Uncertain scores prefer the more frequent of two classes, so the class with the other's rows must be the more
    frequent one. With only two classes, uninformative rows would look the same.

    Args:
        ridge: of the rows' words.
        labels: (n,) numbers of the given labels.
    """
    from scipy.stats import binom

    counts = np.bincount(labels)
    classes = np.flatnonzero(counts >= FEWEST).tolist()
    if len(counts) < 3 or len(classes) < 2:
        return None
    scores = ridge.leave_one_out(one_hot(labels), PENALTY)
    limits, own = _typical(scores, labels, classes)
    gone = np.zeros_like(limits)  # rows labelled i that look more like j
    for i in classes:
        rows = scores[labels == i]
        gone[i] = (rows - rows[:, [i]] > limits[i]).sum(0)
    shares = gone / np.maximum(counts, 1)[:, None] / own
    found: list[tuple[float, OneSided]] = []
    for i, j in np.argwhere(shares >= LEAST).tolist():
        count, mirror, n, m = int(gone[i, j]), int(gone[j, i]), int(counts[i]), int(counts[j])
        low, high = (min(1.0, end / float(own[i, j])) for end in share_within(count, n))
        if m > n or count <= mirror or low < LEAST:
            continue
        others = shares.copy()
        others[i, j] = 0
        if shares[i, j] < TIMES * max(others[[i, j]].max(), others[:, [i, j]].max()):
            continue
        if (p := float(binom.sf(count - 1, count + mirror, n / (n + m)))) <= SURE:
            ahead = scores[:, j] - scores[:, i]
            rows = np.flatnonzero((labels == i) & (ahead > limits[i, j]))
            rows = rows[np.argsort(-ahead[rows], kind="stable")]
            share = min(1.0, float(shares[i, j]))
            found.append((p, OneSided(i, j, tuple(rows.tolist()), n, mirror, m, share, low, high)))
    return min(found, key=lambda candidate: candidate[0])[1] if found else None


def _typical(scores: np.ndarray, labels: np.ndarray, classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much rows of class i must prefer class j, and which share of j's own rows does so.

    Both are (K, K), at [i, j]. The margin is positive, and exceeded by 0.3 of the rows of j. Pairs that are not
    compared have an infinite margin and a share of 1.
    """
    limits, own = np.full((scores.shape[1],) * 2, np.inf), np.ones((scores.shape[1],) * 2)
    for j in classes:
        ahead = scores[labels == j, j][:, None] - scores[np.ix_(labels == j, classes)]
        limits[classes, j] = np.maximum(np.quantile(ahead, 1 - ABOVE, axis=0), 0)
        own[classes, j] = (ahead > limits[classes, j]).mean(0)
        limits[j, j], own[j, j] = np.inf, 1
    limits[own < SHOWN], own[own < SHOWN] = np.inf, 1  # too few of its own look like it
    return limits, own
