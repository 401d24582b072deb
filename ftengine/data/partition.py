"""Ways to divide rows into splits. Rows come in groups that share a side, such as those of equal examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ftengine.errors import DataError
from ftengine.text import counted


def partition(
    groups: np.ndarray, fractions: Mapping[str, float], source: str = "the data", targets: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Divide rows so that those of one group share a side.

    Groups are taken in their order (that of hashes is a shuffle by the seed): for the first split from the front,
    for the second from the back, so that the fraction of one does not move the other as long as they do not meet. A
    group is taken if it brings the number of rows closer to the fraction; where no group does, because all are
    large, the smallest is taken. One group at least is left for training. The same rows in another order, or among
    further rows, mostly stay where they were.

    With targets, a group is taken if it brings the numbers of rows of each target closer to their share; a target
    keeps one group at least in training. So the proportions are kept as far as the groups allow.

    Args:
        groups: (rows,) the group of each row; its order is that of the groups.
        fractions: shares of all rows, by split name; at most two.
        source: where the rows are from.
        targets: (rows,) what each row is to answer, as a number; None for a random division.

    Returns:
        "train" and every key of `fractions` with the indices of its rows, ascending; none is empty.

    Raises:
        DataError: there are fewer groups than splits.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) <= len(fractions):
        raise DataError(
            f"{source}: {_grouped(groups, sizes)}; that is too few to hold out {' and '.join(fractions)} and keep one "
            f"for training. Add examples, or set {' and '.join(f'data.{name}: null' for name in fractions)}."
        )
    strata = None if targets is None else _Strata(group_of, targets, len(sizes))
    owner = np.full(len(sizes), "train", dtype=object)
    waiting = len(fractions)
    for name, fraction in fractions.items():
        free = np.flatnonzero(owner == "train")
        if waiting < len(fractions):
            free = free[::-1]
        # One group is kept for training and one for each split that is still to be made.
        most = len(free) - waiting
        if strata is None:
            taken = _take(sizes, free, fraction * len(groups), most)
        else:
            taken = strata.take(free, fraction, most)
        owner[taken or [int(free[np.argmin(sizes[free])])]] = name
        waiting -= 1
    return {name: np.flatnonzero(owner[group_of] == name) for name in ("train", *fractions)}


def _grouped(groups: np.ndarray, sizes: np.ndarray) -> str:
    if len(groups) == len(sizes):
        return f"it has {counted(len(groups), 'row')}"
    return (
        f"its {len(groups):,} rows form {counted(len(sizes), 'group')} of equal or near-duplicate rows, which stay in "
        "one split (data.near_duplicates)"
    )


def _take(sizes: np.ndarray, order: Iterable[int], target: float, most: int) -> list[int]:
    """Return up to `most` groups whose sizes come close to `target` in sum."""
    taken: list[int] = []
    count = 0
    for group in order:
        if len(taken) == most or count >= target:
            break
        if sizes[group] < 2 * (target - count):  # it ends closer to the target than it began
            taken.append(group)
            count += sizes[group]
    return taken


class _Strata:
    """How many rows of each target every group has, and how many groups of it are left."""

    def __init__(self, group_of: np.ndarray, targets: np.ndarray, groups: int) -> None:
        _, stratum = np.unique(targets, return_inverse=True)
        self._total = np.bincount(stratum)
        group, strata, count = _pairs(group_of, stratum)
        self._left = np.bincount(strata, minlength=len(self._total)).tolist()
        # Lists: each group is looked at by itself, which numpy is slow at.
        self._stratum, self._count = strata.tolist(), count.tolist()
        self._start = np.searchsorted(group, np.arange(groups + 1)).tolist()

    def take(self, order: np.ndarray, fraction: float, most: int) -> list[int]:
        """Return up to `most` groups whose rows come close to a fraction of every target."""
        need = _apportioned(self._total * fraction).tolist()
        taken, stratum, count, left = list[int](), self._stratum, self._count, self._left
        waiting = any(one > 0 for one in need)
        for group in order.tolist():
            if len(taken) == most or not waiting:
                break
            part = range(self._start[group], self._start[group + 1])
            closer = sum(abs(need[stratum[i]] - count[i]) - abs(need[stratum[i]]) for i in part) < 0
            if closer and all(left[stratum[i]] > 1 for i in part):
                taken.append(group)
                for i in part:
                    need[stratum[i]] -= count[i]
                    left[stratum[i]] -= 1
                waiting = any(one > 0 for one in need)
        return taken


def _pairs(group: np.ndarray, stratum: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair of group and stratum that occurs, by group, and the number of its rows."""
    strata = int(stratum.max()) + 1
    pairs, count = np.unique(group * strata + stratum, return_counts=True)
    return pairs // strata, pairs % strata, count


def _apportioned(shares: np.ndarray) -> np.ndarray:
    """Round shares to whole numbers whose sum is the rounded sum (Hamilton's method of largest remainders)."""
    whole = np.floor(shares).astype(np.int64)
    missing = round(shares.sum()) - whole.sum()
    whole[np.argsort(whole - shares, kind="stable")[:missing]] += 1
    return whole


def folds(groups: np.ndarray, k: int, source: str = "the data", targets: np.ndarray | None = None) -> np.ndarray:
    """Return (rows,) the fold of each row, from 0, of k folds of about equal size; arguments are as in `partition`.

    The largest groups are placed first, those of one size in their order; each goes to the smallest fold, or with
    targets to the one that has the fewest rows of what most of the group's rows are to answer.

    Raises:
        DataError: there are fewer groups than folds.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < k:
        raise DataError(
            f"{source}: {_grouped(groups, sizes)}, too few for {k} folds. "
            + (f"Take {len(sizes)} folds at most (--folds or data.split.folds), or add" if len(sizes) > 1 else "Add")
            + " examples."
        )
    stratum = np.zeros(len(sizes), dtype=np.int64)
    if targets is not None:
        group, target, count = _pairs(group_of, np.unique(targets, return_inverse=True)[1])
        fullest = np.lexsort((count, group))  # of each group the last is its most frequent target
        stratum[group[fullest]] = target[fullest]
    rows = np.zeros((stratum.max() + 1, k))
    total = np.zeros(k)
    fold_of = np.empty(len(sizes), dtype=np.int64)
    # Below 1 row: the whole fold's size decides between folds with as many rows of the target.
    tie = 1 / (len(groups) + 1)
    for group in np.argsort(-sizes, kind="stable"):
        fold = int(np.argmin(rows[stratum[group]] + tie * total))
        fold_of[group] = fold
        rows[stratum[group], fold] += sizes[group]
        total[fold] += sizes[group]
    return fold_of[group_of]


def latest(times: np.ndarray, fractions: Mapping[str, float], source: str = "the data") -> dict[str, np.ndarray]:
    """Divide rows by time: the latest are the test split, those before them validation, the earliest training.

    Rows of one time share a side; a split ends where that brings its size closest to the fraction.

    Args:
        times: (rows,) numbers.
        fractions: shares of all rows, by split name, the latest first.

    Raises:
        DataError: there are fewer different times than splits.
    """
    values, count = np.unique(times, return_counts=True)
    if len(values) <= len(fractions):
        raise DataError(
            f"{source}: its {len(times):,} rows have {len(values):,} different times; that is too few to hold out "
            f"{' and '.join(fractions)} and keep one for training. Give finer times, or another data.split.by."
        )
    before = np.concatenate([[0], np.cumsum(count)])  # rows earlier than each value
    sides, end = {}, len(values)
    for i, (name, fraction) in enumerate(fractions.items()):
        waiting = len(fractions) - i  # a time is kept for training and one for each further split
        target = before[end] - fraction * len(times)
        start = int(np.argmin(np.abs(before[waiting:end] - target))) + waiting
        sides[name] = np.flatnonzero((times >= values[start]) & (times <= values[end - 1]))
        end = start
    return {"train": np.flatnonzero(times < values[end]), **sides}
