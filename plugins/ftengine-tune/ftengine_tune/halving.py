"""Rungs of a search, and which trials are surely behind another: paired tests on losses of validation examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

ETA = 3
"""A rung trains this many times the steps of the one before (Jamieson & Talwalkar 2016, arXiv:1502.07943)."""
RUNGS = 3
ERROR = 0.05
"""Highest probability with which a search drops the trial whose true loss is the lowest."""


def rungs_of(total: int) -> tuple[int, ...]:
    """Return the steps after which trials of `total` steps are compared, about a ninth, a third, and all of them."""
    first = math.ceil(total / ETA ** (RUNGS - 1))
    return tuple(min(total, first * ETA**rung) for rung in range(RUNGS))


@dataclass(frozen=True)
class Behind:
    """The test in which a trial did worst.

    Args:
        other: the number (position) of the trial that it is behind.
        p: one-sided p-value, multiplied by the number of comparisons.
        surely: whether the trial is dropped for it.
    """

    other: int
    p: float
    surely: bool


def compare(losses: np.ndarray, groups: np.ndarray, trials: int) -> list[Behind]:
    """Test whether trials are behind others, after one rung.

    A trial is surely behind if its expected loss is higher than that of any other one by Student's paired t-test over
    groups of examples, at level `ERROR` / `RUNGS` / (`trials` - 1). The best trial takes part in at most `trials` - 1
    tests a rung, in each of which the hypothesis that it is not worse is true; so all rungs together drop it with a
    probability of at most `ERROR` (Bonferroni).

    Args:
        losses: (K, n) summed loss of each validation example under each trial.
        groups: (n,) equal for examples that are not independent.
        trials: number of trials with which the search began.

    Returns:
        K results; the one of the trial with the lowest loss is compared with the others too.
    """
    _, of = np.unique(groups, return_inverse=True)
    count = int(of.max()) + 1
    summed = np.stack([np.bincount(of, row, count) for row in losses])
    results = []
    for i, own in enumerate(summed):
        p = np.minimum(1.0, p_behind(own - np.delete(summed, i, axis=0)) * max(1, trials - 1))
        if not p.size:
            results.append(Behind(i, 1.0, False))
            continue
        least = int(p.argmin())
        results.append(Behind(least + (least >= i), float(p[least]), bool(p[least] <= ERROR / RUNGS)))
    return results


def ending(rung: int, left: int, dropped: int) -> Literal["one left", "not told apart"] | None:
    """Return why a search ends after a rung that dropped some trials and left some; None: it goes on.

    Where a rung other than the first drops less than a third, three times the training told few trials apart.
    """
    if rung == RUNGS:
        return None
    if left == 1:
        return "one left"
    return "not told apart" if rung > 1 and ETA * dropped < left + dropped else None


def p_behind(differences: np.ndarray) -> np.ndarray:
    """Return (K,) one-sided p-values of a mean that is not above 0, of paired differences (K, n)."""
    n = differences.shape[1]
    mean = differences.mean(axis=1)
    if n < 2:
        return np.ones(len(mean))
    error = differences.std(axis=1, ddof=1) / math.sqrt(n)
    varies = error > 1e-12 * np.abs(mean)
    p = scipy.special.stdtr(n - 1, -mean / np.where(varies, error, 1.0))
    # Where all examples differ alike, Student's t has no error; the sign test has.
    return np.where(varies, p, np.where(mean > 0, 0.5**n, 1.0))
