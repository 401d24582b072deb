"""Rows of one class that were labelled as another, by which rows look more like the other class than its own do."""

from __future__ import annotations

import itertools
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
FEWEST = 20
"""Rows of a class below which it is left out."""


@dataclass(frozen=True)
class OneSided:
    """Rows labelled as one class that look like another.

    Args:
        label, other: the two classes.
        rows: numbers of the rows labelled `label` that look more like `other` than 0.3 of its own rows do, the surest
            first. Of relabelled rows, 0.7 do (ABOVE).
        n: rows labelled `label`.
        mirror, mirror_n: the same of `other`: how many rows, and of how many.
        share, low, high: of the rows labelled `label` that are `other`'s, with its 95 % interval (Wilson).
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
    """Find two classes of three or more of which one has surely rows of the other, and the other none of it.

    Scores prefer the more frequent of two classes where they are unsure, so the class that has the others' rows must be
    the more frequent one. Of two classes in all, rows that show no sign of theirs would look the same.

    Args:
        ridge: of the rows' words.
        labels: (n,) numbers of the labels as given.
    """
    from scipy.stats import binom

    counts = np.bincount(labels)
    classes = np.flatnonzero(counts >= FEWEST).tolist()
    if len(counts) < 3 or len(classes) < 2:
        return None
    scores = ridge.leave_one_out(one_hot(labels), PENALTY)
    gone = {pair: _across(scores, labels, *pair) for pair in itertools.permutations(classes, 2)}
    shares = {(i, j): len(rows) / counts[i] for (i, j), rows in gone.items()}
    found: list[tuple[float, OneSided]] = []
    for (i, j), rows in gone.items():
        count, mirror, n, m = len(rows), len(gone[j, i]), int(counts[i]), int(counts[j])
        near = max((share for pair, share in shares.items() if pair != (i, j) and {i, j} & {*pair}), default=0.0)
        if m > n or count <= mirror or shares[i, j] < TIMES * near:
            continue
        p = float(binom.sf(count - 1, count + mirror, n / (n + m)))
        low, high = (min(1.0, end / ABOVE) for end in share_within(count, n))
        if p <= SURE and low >= LEAST:
            found.append((p, OneSided(i, j, tuple(rows), n, mirror, m, min(1.0, count / n / ABOVE), low, high)))
    return min(found, key=lambda one: one[0])[1] if found else None


def _across(scores: np.ndarray, labels: np.ndarray, label: int, other: int) -> list[int]:
    """Return the rows labelled `label` that prefer another class by more than 0.3 of the rows of that one do."""
    ahead = scores[:, other] - scores[:, label]
    typical = np.quantile(ahead[labels == other], 1 - ABOVE)
    rows = np.flatnonzero((labels == label) & (ahead > typical))
    return rows[np.argsort(-ahead[rows], kind="stable")].tolist()
