"""Ways to divide rows into splits. Rows come in groups that share a side, such as those of equal examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ftengine.errors import DataError
from ftengine.text import counted


def partition(
    groups: np.ndarray,
    fractions: Mapping[str, float],
    source: str = "the data",
    targets: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Divide rows so that those of one group share a side.

    Groups are taken in their order (that of hashes is a shuffle by the seed): for the first split from the front,
    for the second from the back, so that the fraction of one does not move the other as long as they do not meet. A
    group is taken if it brings the number of rows closer to the fraction; where no group does, because all are
    large, the smallest is taken. One group at least is left for training. The same rows in another order, or among
    further rows, mostly stay where they were.

    With targets, a group is taken if it brings the numbers of rows of each target closer to their share; a target
    keeps one group at least in training. So the proportions are kept as far as the groups allow.

    With sources, what is held out, as many rows (of each target) as without, is divided among them in proportion, and
    each keeps a group in training, as far as the groups and targets allow.

    Args:
        groups: (rows,) the group of each row; its order is that of the groups.
        fractions: shares of all rows, by split name; at most two.
        source: where the rows are from.
        targets: (rows,) what each row is to answer, as a number; None for a random division.
        sources: (rows,) the number of each row's source; None where there is one.

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
    of_all = np.zeros(len(groups), dtype=np.int64) if targets is None else targets
    several = sources is not None and len(np.unique(sources)) > 1
    mixture = _Sources(group_of, of_all, sources, len(sizes)) if several else None  # type: ignore[arg-type]
    owner = np.full(len(sizes), "train", dtype=object)
    waiting = len(fractions)
    for name, fraction in fractions.items():
        free = np.flatnonzero(owner == "train")
        if waiting < len(fractions):
            free = free[::-1]
        # One group is kept for training and one for each split that is still to be made.
        most = len(free) - waiting
        groups_taken = _held_out(sizes, free, fraction, most, strata, mixture)
        owner[groups_taken] = name
        waiting -= 1
    return {name: np.flatnonzero(owner[group_of] == name) for name in ("train", *fractions)}


def _held_out(
    sizes: np.ndarray, free: np.ndarray, fraction: float, most: int, strata: _Strata | None, mixture: _Sources | None
) -> list[int]:
    """Return the groups of one split, and take them out of what is left for training."""
    if strata is None:
        taken = _take(sizes, free, fraction * sizes.sum(), most)
    else:
        taken = strata.take(free, _apportioned(strata.total * fraction).tolist(), most)
    if mixture is not None:
        taken = mixture.take(free, taken, fraction, most)
    taken = taken or [int(free[np.argmin(sizes[free])])]
    for strata_ in (strata, mixture):
        if strata_ is not None:
            strata_.remove(taken)
    return taken


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
    """How many rows of each stratum every group has, and in how many groups of training it is."""

    def __init__(self, group_of: np.ndarray, of: np.ndarray, groups: int) -> None:
        _, stratum = np.unique(of, return_inverse=True)
        self.total = np.bincount(stratum)
        group, strata, count = _pairs(group_of, stratum)
        self._left = np.bincount(strata, minlength=len(self.total))
        # Lists: each group is looked at by itself, which numpy is slow at.
        self._stratum, self._count = strata.tolist(), count.tolist()
        self._start = np.searchsorted(group, np.arange(groups + 1)).tolist()

    def take(
        self,
        order: np.ndarray,
        need: Sequence[int],
        most: int,
        *,
        protected: Sequence[_Strata] = (),
        after: Sequence[int] = (),
        within: tuple[_Strata, Sequence[int]] | None = None,
    ) -> list[int]:
        """Return up to `most` groups whose rows come close to what is needed of each stratum.

        Args:
            kept: whose strata keep one group at least in training; its own by default.
            after: groups that are taken already.
            within: other strata, and what is needed of them, to which each group has to bring the rows closer too.
        """
        taken, need, stratum, count = list[int](), list(need), self._stratum, self._count
        wider, limit = (None, []) if within is None else (within[0], list(within[1]))
        protected = protected or (self,)
        remaining = [one._but_for(after) for one in protected]
        waiting = any(count > 0 for count in need)
        for group in order.tolist():
            if len(taken) == most or not waiting:
                break
            part = range(self._start[group], self._start[group + 1])
            closer = sum(abs(need[stratum[i]] - count[i]) - abs(need[stratum[i]]) for i in part) < 0
            if closer and wider is not None:
                closer = sum(abs(limit[s] - n) - abs(limit[s]) for s, n in wider._rows_of(group)) < 0
            if closer and all(
                has[s] > 1 for one, has in zip(protected, remaining, strict=True) for s in one._strata(group)
            ):
                taken.append(group)
                for i in part:
                    need[stratum[i]] -= count[i]
                for s, n in () if wider is None else wider._rows_of(group):
                    limit[s] -= n
                for one, has in zip(protected, remaining, strict=True):
                    for s in one._strata(group):
                        has[s] -= 1
                waiting = any(count > 0 for count in need)
        return taken

    def rows(self, taken: Sequence[int]) -> np.ndarray:
        """Return how many rows of each stratum some groups have."""
        rows = np.zeros(len(self.total), dtype=np.int64)
        for group in taken:
            for stratum, count in self._rows_of(group):
                rows[stratum] += count
        return rows

    def remove(self, taken: Sequence[int]) -> None:
        """Take groups out of training."""
        self._left = np.array(self._but_for(taken))

    def _but_for(self, taken: Sequence[int]) -> list[int]:
        left = self._left.tolist()
        for group in taken:
            for stratum in self._strata(group):
                left[stratum] -= 1
        return left

    def _rows_of(self, group: int) -> list[tuple[int, int]]:
        """Return each stratum of a group with the number of its rows."""
        start, end = self._start[group], self._start[group + 1]
        return list(zip(self._stratum[start:end], self._count[start:end], strict=True))

    def _strata(self, group: int) -> list[int]:
        return self._stratum[self._start[group] : self._start[group + 1]]


class _Sources:
    """What is held out of each of several sources: of every target its share, as far as the targets allow."""

    def __init__(self, group_of: np.ndarray, targets: np.ndarray, sources: np.ndarray, groups: int) -> None:
        target = np.unique(targets, return_inverse=True)[1]
        # Sources are numbered by their first group, whose order is that of the seed and not of the recipe.
        names, source = np.unique(sources, return_inverse=True)
        first = np.full(len(names), groups)
        np.minimum.at(first, source, group_of)
        source = np.argsort(np.argsort(first, kind="stable"))[source]
        self._targets, self._sources = _Strata(group_of, target, groups), _Strata(group_of, source, groups)
        cell = target * len(names) + source
        self._cells = _Strata(group_of, cell, groups)
        cells = np.unique(cell)
        self._target, self._source = cells // len(names), cells % len(names)
        self._free = self._cells.total.copy()

    def take(self, order: np.ndarray, without_sources: list[int], fraction: float, most: int) -> list[int]:
        """Return groups in place of those that are taken without sources, with as many rows of each target.

        Where these would be further from their shares, those without sources are returned.
        """
        need = self._targets.rows(without_sources)
        protected = (self._targets, self._sources)
        within = (self._targets, need.tolist())
        taken = self._cells.take(order, self._shared_out(need).tolist(), most, protected=protected, within=within)
        missing, rest = need - self._targets.rows(taken), order[~np.isin(order, taken)]
        taken += self._targets.take(rest, missing.tolist(), most - len(taken), protected=protected, after=taken)
        off, usual = (
            self._targets.rows(groups) - fraction * self._targets.total for groups in (taken, without_sources)
        )
        near = abs(off.sum()) <= abs(usual.sum()) + 1e-9 and np.abs(off).sum() <= np.abs(usual).sum() + 1e-9
        return taken if near else without_sources

    def remove(self, taken: Sequence[int]) -> None:
        """Take groups out of training."""
        for strata in (self._targets, self._sources, self._cells):
            strata.remove(taken)
        self._free -= self._cells.rows(taken)

    def _shared_out(self, need: np.ndarray) -> np.ndarray:
        """Divide what is needed of each target among the sources that have it, as whole numbers.

        What is left by rounding down goes to the sources that are furthest behind, over all targets so far.
        """
        free = np.bincount(self._target, self._free)
        shares = self._free * (need / np.maximum(free, 1))[self._target]
        rounded = np.floor(shares + 1e-9).astype(np.int64)
        behind = np.zeros(len(self._sources.total))
        for target in range(len(need)):
            cells = np.flatnonzero(self._target == target)
            np.add.at(behind, self._source[cells], shares[cells] - rounded[cells])
            open_ = cells[shares[cells] > rounded[cells] + 1e-9]
            furthest = open_[np.argsort(-np.round(behind[self._source[open_]], 9), kind="stable")]
            more = furthest[: need[target] - rounded[cells].sum()]
            rounded[more] += 1
            behind[self._source[more]] -= 1
        return rounded


def _pairs(group: np.ndarray, stratum: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair of group and stratum that occurs, by group, and the number of its rows."""
    strata = int(stratum.max()) + 1
    pairs, count = np.unique(group * strata + stratum, return_counts=True)
    return pairs // strata, pairs % strata, count


def _apportioned(shares: np.ndarray) -> np.ndarray:
    """Round shares to whole numbers whose sum is the rounded sum (Hamilton's method of largest remainders)."""
    rounded = np.floor(shares).astype(np.int64)
    missing = round(shares.sum()) - rounded.sum()
    rounded[np.argsort(rounded - shares, kind="stable")[:missing]] += 1
    return rounded


def folds(
    groups: np.ndarray,
    k: int,
    source: str = "the data",
    targets: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> np.ndarray:
    """Return (rows,) the fold of each row, from 0, of k folds of about equal size; arguments are as in `partition`.

    The largest groups are placed first, those of one size in their order; each goes to the smallest fold, or with
    targets to the one that has the fewest rows of what most of the group's rows are to answer. With sources, groups of
    one size go by these, target by target, so that each is spread over the folds.

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
    stratum, of = (_most_frequent(group_of, each, len(sizes)) for each in (targets, sources))
    rows, of_source = np.zeros((stratum.max() + 1, k)), np.zeros((of.max() + 1, k))
    total = np.zeros(k)
    fold_of = np.empty(len(sizes), dtype=np.int64)
    # Below 1 row: the whole fold's size decides between folds with as many rows of the target.
    tie = 1 / (len(groups) + 1)
    for group in np.argsort(-sizes, kind="stable") if sources is None else np.lexsort((of, stratum, -sizes)):
        fold = int(np.argmin(rows[stratum[group]] + tie * total + tie**2 * of_source[of[group]]))
        fold_of[group] = fold
        rows[stratum[group], fold] += sizes[group]
        total[fold] += sizes[group]
        of_source[of[group], fold] += sizes[group]
    return fold_of[group_of]


def _most_frequent(group_of: np.ndarray, of: np.ndarray | None, groups: int) -> np.ndarray:
    """Return (groups,) the number of what most rows of each group are of; 0 where nothing is known of rows."""
    result = np.zeros(groups, dtype=np.int64)
    if of is not None:
        group, number, count = _pairs(group_of, np.unique(of, return_inverse=True)[1])
        fullest = np.lexsort((count, group))  # of each group the last is its most frequent
        result[group[fullest]] = number[fullest]
    return result


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
