"""Division of rows into splits: at random, stratified, by time or into folds. A group of rows stays in one split."""

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
    """Divide rows into splits so that each group is in one split.

    Groups are taken in order (the order of hashes is a shuffle by the seed): for the first split from the front, for
    the second from the back, so that the fraction of one does not affect the other unless they meet. A group is taken
    if it brings the number of rows closer to the fraction; if all groups are too large for that, the smallest is taken.
    At least one group stays in training. If rows are reordered or added, most rows stay in the same split.

    With targets, a group is taken if it brings the number of rows of each target closer to its share, and each target
    keeps at least one group in training. So proportions are preserved as far as the groups allow.

    With sources, as many rows (of each target) are held out as without; they are divided among the sources in
    proportion, and each source keeps a group in training, as far as the groups and targets allow.

    Args:
        groups: (rows,) the group of each row; its order is that of the groups.
        fractions: shares of all rows, by split name; at most two.
        source: name of the rows' source, for messages.
        targets: (rows,) each row's target as a number; None for a random division.
        sources: (rows,) the number of each row's source; None if there is only one.

    Returns:
        The row indices, ascending, of "train" and of every key of `fractions`; none is empty.

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
        # One group stays for training and one for each split that is still to be made.
        most = len(free) - waiting
        chosen = _held_out(sizes, free, fraction, most, strata, mixture)
        owner[chosen] = name
        waiting -= 1
    return {name: np.flatnonzero(owner[group_of] == name) for name in ("train", *fractions)}


def _held_out(
    sizes: np.ndarray, free: np.ndarray, fraction: float, most: int, strata: _Strata | None, mixture: _Sources | None
) -> list[int]:
    """Return the groups of one split, and remove them from those left for training."""
    if strata is None:
        taken = _take(sizes, free, fraction * sizes.sum(), most)
    else:
        taken = strata.take(free, _apportioned(strata.total * fraction).tolist(), most)
    if mixture is not None:
        taken = mixture.take(free, taken, fraction, most)
    taken = taken or [int(free[np.argmin(sizes[free])])]
    for counter in (strata, mixture):
        if counter is not None:
            counter.remove(taken)
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
        if sizes[group] < 2 * (target - count):  # this brings the sum closer to the target
            taken.append(group)
            count += sizes[group]
    return taken


class _Strata:
    """The number of rows of each stratum in every group, and the number of training groups of each stratum."""

    def __init__(self, group_of: np.ndarray, of: np.ndarray, groups: int) -> None:
        _, stratum = np.unique(of, return_inverse=True)
        self.total = np.bincount(stratum)
        group, strata, count = _pairs(group_of, stratum)
        self._left = np.bincount(strata, minlength=len(self.total))
        # Lists, because numpy is slow at handling single groups.
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
        """Return up to `most` groups with about `need` rows of each stratum.

        Args:
            protected: strata that keep at least one group in training; by default this object's.
            after: groups that were taken before.
            within: other strata with the rows needed of each; a group must bring their numbers closer to these too.
        """
        taken, need, stratum, count = list[int](), list(need), self._stratum, self._count
        wider, limit = (None, []) if within is None else (within[0], list(within[1]))
        protected = protected or (self,)
        remaining = [strata._but_for(after) for strata in protected]
        waiting = any(count > 0 for count in need)
        for group in order.tolist():
            if len(taken) == most or not waiting:
                break
            part = range(self._start[group], self._start[group + 1])
            closer = sum(abs(need[stratum[i]] - count[i]) - abs(need[stratum[i]]) for i in part) < 0
            if closer and wider is not None:
                closer = sum(abs(limit[s] - n) - abs(limit[s]) for s, n in wider._rows_of(group)) < 0
            if closer and all(
                has[s] > 1 for strata, has in zip(protected, remaining, strict=True) for s in strata._strata(group)
            ):
                taken.append(group)
                for i in part:
                    need[stratum[i]] -= count[i]
                for s, n in () if wider is None else wider._rows_of(group):
                    limit[s] -= n
                for strata, has in zip(protected, remaining, strict=True):
                    for s in strata._strata(group):
                        has[s] -= 1
                waiting = any(count > 0 for count in need)
        return taken

    def rows(self, taken: Sequence[int]) -> np.ndarray:
        """Return (strata,) the number of rows of each stratum in some groups."""
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
    """Division of held-out rows among several sources, in proportion for each target."""

    def __init__(self, group_of: np.ndarray, targets: np.ndarray, sources: np.ndarray, groups: int) -> None:
        target = np.unique(targets, return_inverse=True)[1]
        # Sources are numbered by their first group, so that the seed and not the recipe determines their order.
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
        """Return groups that replace those taken without regard to sources, with as many rows of each target.

        If the new groups are further from the targets' shares, `without_sources` is returned.
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
        """Divide the rows needed of each target among the sources that have it, as whole numbers.

        Rows that rounding down leaves over go to the sources that are furthest behind over all targets so far.
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
    """Return the groups, the strata and the numbers of rows of all pairs of group and stratum, sorted by group."""
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
    """Return (rows,) the fold of each row, from 0, with k folds of about equal size; arguments as in `partition`.

    The largest groups are placed first, and groups of equal size in their order. Each goes to the smallest fold or,
    with targets, to the fold with the fewest rows of the group's most frequent target. With sources, groups of equal
    size are sorted by target and source, so that each source is spread over the folds.

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
    # Below 1 row: the fold's size decides between folds with equally many rows of the target.
    tie = 1 / (len(groups) + 1)
    for group in np.argsort(-sizes, kind="stable") if sources is None else np.lexsort((of, stratum, -sizes)):
        fold = int(np.argmin(rows[stratum[group]] + tie * total + tie**2 * of_source[of[group]]))
        fold_of[group] = fold
        rows[stratum[group], fold] += sizes[group]
        total[fold] += sizes[group]
        of_source[of[group], fold] += sizes[group]
    return fold_of[group_of]


def _most_frequent(group_of: np.ndarray, of: np.ndarray | None, groups: int) -> np.ndarray:
    """Return (groups,) the most frequent value of `of` in each group; 0 if `of` is None."""
    result = np.zeros(groups, dtype=np.int64)
    if of is not None:
        group, number, count = _pairs(group_of, np.unique(of, return_inverse=True)[1])
        fullest = np.lexsort((count, group))  # the last of each group is its most frequent
        result[group[fullest]] = number[fullest]
    return result


def latest(times: np.ndarray, fractions: Mapping[str, float], source: str = "the data") -> dict[str, np.ndarray]:
    """Divide rows by time: the latest are the test split, those before them validation, the earliest training.

    Rows with equal times are in one split; a split ends where its size is closest to the fraction.

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
