"""Blocks of consecutive rows whose labels slipped, or are all one label, by a classifier's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ftengine_builtins.label_fit import ERRORS, Offset, agreement, confusion_of, correlation_of

BLOCK, ORDERS, LIKE = 20, 199, 0.6
"""Rows of a block that slipped, and of the others, at least; random orders of all rows; and how well, beyond chance,
labels of neighbours fit in it, as a part of how well own ones fit elsewhere."""

BY_CHANCE, APART, FEWEST_OWN = 1e-6, 0.2, 5
"""Probability of so many equal labels in a row, over all places, up to which it is no chance; by how much more often a
label is answered to rows that have it than to others, from which words show whether rows have it; and the fewest rows
that have it elsewhere."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows whose labels are those of other rows, among rows whose labels are their own.

    Args:
        start, stop: the first of the compared rows that is in it, and the first behind it.
        offset: of the labels that fit.
    """

    start: int
    stop: int
    offset: Offset


def find_block(answers: np.ndarray, labels: Mapping[int, np.ndarray], size: int) -> Block | None:
    """Return the block of rows in which the labels of a neighbour fit far better than those of the rows.

    The sum of what an offset gains over own labels is larger in these consecutive rows than anywhere in ORDERS random
    orders of the rows. There the neighbours' labels fit significantly better than own ones, and nearly as well as own
    ones do elsewhere: in a block of rows whose labels are wrong otherwise, no label fits.

    Args:
        answers: (n,) answered classes, or numbers, of the rows in the order of the file.
        labels: by offset, 0 included, (n,) classes, -1 for none; or numbers, nan for none.
        size: number of classes; 0 for numbers.
    """
    own, others = labels[0], [rows for rows in labels if rows]
    gains = np.stack([_gain(answers, own, labels[rows], size) for rows in others])
    if len(answers) < 2 * BLOCK:
        return None
    sums, starts, stops = _largest_sums(gains)
    rng = np.random.default_rng(0)
    chance = max(float(_largest_sums(rng.permuted(gains, axis=1))[0].max()) for _ in range(ORDERS))
    best = int(sums.argmax())
    inside = np.zeros(len(answers), dtype=bool)
    inside[starts[best] : stops[best]] = True
    if sums[best] <= chance or inside.sum() < BLOCK or (~inside).sum() < BLOCK:
        return None
    there, rows = labels[others[best]], others[best]
    fit, before, outside = (
        _fit(answers[at], of[at], size) for at, of in ((inside, there), (inside, own), (~inside, own))
    )
    if fit[1] < max(LIKE * outside[1], ERRORS * fit[2]) or fit[1] - before[1] < ERRORS * fit[2]:
        return None
    return Block(int(starts[best]), int(stops[best]), Offset(rows, fit[0], before[0], int(inside.sum())))


def find_run(labels: np.ndarray) -> tuple[int, int] | None:
    """Return start and stop of consecutive rows with one label among rows in random order; None if there are none.

    Args:
        labels: (n,) classes of the rows in the order of the file.
    """
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
    lengths = np.diff([*starts, len(labels)])
    start, size = int(starts[lengths.argmax()]), int(lengths.max(initial=0))
    others = np.delete(labels, slice(start, start + size))
    if min(size, len(others)) < BLOCK:
        return None
    share = (float((others == labels[start]).sum()) + 1) / (len(others) + 2)
    shares = np.unique(others, return_counts=True)[1] / len(others)
    alike, pairs = float((others[1:] == others[:-1]).mean()), len(others) - 1
    chance = float((shares**2).sum())
    in_order = alike - chance > ERRORS * math.sqrt(max(chance * (1 - chance), 1 / pairs) / pairs)
    return None if in_order or len(labels) * share**size > BY_CHANCE else (start, start + size)


def are_of_all_labels(given: np.ndarray, own: np.ndarray, others: np.ndarray) -> bool:
    """Return whether rows with one label are answered as rows of all labels are, and not as its own.

    Args:
        given, own, others: whether the label is answered to each of these rows, of others with it, and of all others.
    """
    if len(own) < FEWEST_OWN:
        return False
    right, usual, share = float(own.mean()), float(others.mean()), float(given.mean())
    error = math.sqrt(max(share * (1 - share), 0.05) / len(given) + max(right * (1 - right), 0.05) / len(own))
    return right - usual >= APART and share <= (right + usual) / 2 and right - share >= ERRORS * error


def _gain(answers: np.ndarray, own: np.ndarray, there: np.ndarray, size: int) -> np.ndarray:
    """Return (n,): how much better other rows' labels fit than own ones; 0 where a row has none."""
    if not size:
        spread = float(np.nanstd(own)) or 1.0
        return np.nan_to_num((np.abs(answers - own) - np.abs(answers - there)) / spread)
    return np.where((own >= 0) & (there >= 0), (answers == there).astype(float) - (answers == own), 0.0)


def _largest_sums(gains: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the largest sum of consecutive values in each row of (k, n), its start, and its stop (Kadane)."""
    sums = np.concatenate([np.zeros((len(gains), 1)), gains.cumsum(1)], 1)
    over = sums - np.minimum.accumulate(sums, 1)
    stops = over.argmax(1)
    starts = [int(row[: stop + 1].argmin()) for row, stop in zip(sums, stops, strict=True)]
    return over.max(1), np.array(starts), stops


def _fit(answers: np.ndarray, labels: np.ndarray, size: int) -> tuple[float, float, float]:
    """Return how well labels fit: to be shown, beyond chance, and the standard error of the latter."""
    if size:
        found = agreement(confusion_of(labels, answers, size))
        return found.share, found.kappa, found.error
    known = ~np.isnan(labels)
    correlation = correlation_of(answers, labels)
    return correlation, correlation, (1 - correlation**2) / math.sqrt(max(1, int(known.sum()) - 3)) + 1e-9
