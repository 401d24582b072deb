"""Tests of whether labels belong to their rows, by a classifier's answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SURE = 1e-3
"""Probability by chance, times the ways that were tried, up to which other labels fit better than a row's own. Where
labels belong to their rows it is far from there; where none fits, it is how often one is accused."""
EACH = 0.05
"""The same of each of three or more swapped classes by itself."""
GRADED, PARTLY = 10, 0.2
"""Rows of a grade from which it is looked at whether it moved, and the share of them at the end of the scale."""
ERRORS = 4.0
"""Standard errors, of correlations and agreements."""
LEAST = 0.3
"""Correlation from which numbers fit at all."""


@dataclass(frozen=True)
class Offset:
    """Labels of other rows that fit better than a row's own.

    Args:
        rows: the offset in rows: 1 for the labels of the next row.
        fit, own: shares of answers that equal the other row's label and the row's own; for numbers the correlations.
        n: number of compared rows.
    """

    rows: int
    fit: float
    own: float
    n: int


def find_offset(answers: Mapping[int, np.ndarray], labels: Mapping[int, np.ndarray], size: int) -> Offset | None:
    """Return the offset of the rows whose labels fit the answers significantly better (McNemar's exact test).

    None if there is none, or if own labels fit worse than chance: rows with nearly the same text then have different
    labels, like the hypotheses of one premise, and any other row's labels fit better.

    Args:
        answers: for each offset, 0 included, the (n,) answered classes.
        labels: by offset, (n,) classes of the rows that far behind, -1 for none.
        size: number of classes.
    """
    from scipy.stats import binom

    best, right = None, answers[0] == labels[0]
    own = agreement(confusion_of(labels[0], answers[0], size))
    if own.kappa < -ERRORS * own.error:
        return None
    for rows, there in labels.items():
        known, fits = (there >= 0) & (labels[0] >= 0), answers[rows] == there
        only, against = int((fits & ~right)[known].sum()), int((right & ~fits)[known].sum())
        if not rows or only <= against or binom.sf(only - 1, only + against, 0.5) * (len(labels) - 1) > SURE:
            continue
        fit = agreement(confusion_of(there, answers[rows], size))
        if fit.kappa >= ERRORS * fit.error and (best is None or fit.share > best.fit):
            best = Offset(rows, fit.share, float(right[known].mean()), int(known.sum()))
    return best


def follow_one_another(labels: Mapping[int, np.ndarray]) -> bool:
    """Return whether labels depend on those of the following rows, so that the order of rows is not random.

    Tested by chi-squared for classes, and by correlation for numbers. In dialogues the next row's label may fit better
    than a row's own without being misplaced.
    """
    return any(_depend(labels[0], there) for rows, there in labels.items() if rows > 0)


def _depend(labels: np.ndarray, other: np.ndarray) -> bool:
    from scipy.stats import chi2_contingency

    if labels.dtype.kind == "f":
        return abs(correlation_of(labels, other)) * math.sqrt(len(labels)) >= ERRORS
    known = (labels >= 0) & (other >= 0)
    table = confusion_of(labels, np.where(known, other, 0), 1 + int(max(labels.max(), other.max())))
    table = table[table.any(1)][:, table.any(0)]
    return min(table.shape) > 1 and bool(chi2_contingency(table, correction=False).pvalue <= SURE)


def find_number_offset(answers: Mapping[int, np.ndarray], numbers: Mapping[int, np.ndarray]) -> Offset | None:
    """Return the offset of the rows whose numbers correlate better with answers; (n,) nan where a row has none.

    Tested by Fisher's z as if the correlations were of different rows, which is conservative. None if own numbers
    correlate surely below 0, as in `find_offset`.
    """
    best, own = None, correlation_of(answers[0], numbers[0])
    if own * math.sqrt(len(numbers[0])) < -ERRORS:
        return None
    for rows in numbers:
        there, n = correlation_of(answers[rows], numbers[rows]), int((~np.isnan(numbers[rows])).sum())
        if rows and there >= LEAST and n > 3:
            surer = (math.atanh(min(there, 0.999999)) - math.atanh(max(own, -0.999999))) / math.sqrt(2 / (n - 3))
            if surer >= ERRORS and (best is None or there > best.fit):
                best = Offset(rows, there, own, n)
    return best


def correlation_of(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of (n,) numbers where both are known; 0 if one of both is constant."""
    known = ~np.isnan(x) & ~np.isnan(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return 0.0
    return float(np.corrcoef(x[known], y[known])[0, 1])


@dataclass(frozen=True)
class Swap:
    """Classes whose rows have the labels of others.

    Args:
        classes: pairs of a labelled and the answered class, one to one.
        fit, own: numbers of rows labelled with one of the classes that are answered as relabelled, and as labelled.
        n: all rows labelled with one of them.
    """

    classes: tuple[tuple[int, int], ...]
    fit: int
    own: int
    n: int

    @property
    def is_exchange(self) -> bool:
        """Whether these classes have each other's labels; if not, they are numbered differently than in training."""
        return {label for label, _ in self.classes} == {answer for _, answer in self.classes}


def find_swap(confusion: np.ndarray, sure: float = SURE) -> Swap | None:
    """Find a relabelling of classes that explains (K, K) counts, labels by answers, better than the labels do.

    Two classes are exchanged if answers contradict both (Fisher's exact test on the rows labelled and answered as one
    of the two); a classifier that merely prefers one of them contradicts one only. Of more classes, each must be
    answered as another one more often than as itself. So must those of a chain that ends at a class without rows: if
    codes 0 to 3 were given without class 1, then 1 is 2, and 2 is 3.

    Args:
        sure: significance level, corrected for the number of relabellings that are tried.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binom, hypergeom

    size, rows = len(confusion), confusion.sum(1)
    moved = dict(zip(*(x.tolist() for x in linear_sum_assignment(confusion, maximize=True)), strict=True))

    def against(classes: Iterable[int]) -> float:
        """Return the p-value of being answered as others this much more often than as themselves."""
        fit, own = (sum(int(confusion[i, to[i]]) for i in classes) for to in (moved, range(size)))
        return float(binom.sf(fit - 1, fit + own, 0.5))

    swapped, chained = list[tuple[int, int]](), list[int]()
    for cycle in _cycles(moved):
        if not rows[cycle].all():
            chained += [i for i in cycle if rows[i] and against([i]) <= EACH]
        elif len(cycle) > 2 and all(against([i]) <= EACH for i in cycle):
            swapped += [
                (i, moved[i]) for i in cycle if against(cycle) * math.perm(size, len(cycle)) <= sure * len(cycle)
            ]
    if len(chained) > 1 and against(chained) * math.perm(size, len(chained)) <= sure:
        swapped += [(i, moved[i]) for i in chained]
    for i, j in itertools.combinations(range(size), 2):
        (ii, ij), (ji, jj) = confusion[np.ix_((i, j), (i, j))].tolist()
        p = float(hypergeom.cdf(ii, ii + ij + ji + jj, ii + ji, ii + ij)) if ii + ij and ji + jj else 1.0
        if p * math.comb(size, 2) <= sure and not {i, j} & {label for label, _ in swapped}:
            swapped += [(i, j), (j, i)]
    if not swapped:
        return None
    fit, own = (sum(int(confusion[pair]) for pair in pairs) for pairs in (swapped, [(i, i) for i, _ in swapped]))
    return Swap(tuple(swapped), fit, own, int(rows[[i for i, _ in swapped]].sum()))


def one_grade_off(confusion: np.ndarray, swap: Swap, names: Sequence[str]) -> int:
    """Return by how many grades labels are above the answers, 1 or -1; 0 if this is not the case.

    Labels are whole numbers in order, and each is answered as the next one (at the end of the scale, in part): raters
    may be more generous. With codes given per file, those before the missing one stay.
    """
    if swap.is_exchange or not all(name.strip().removeprefix("-").isdecimal() for name in names):
        return 0
    order = {grade: i for i, grade in enumerate(sorted(map(int, names)))}
    place, at = [order[int(name)] for name in names], np.argsort([int(name) for name in names])
    moves = {place[label] - place[answer] for label, answer in swap.classes}
    if len(order) != len(names) or moves not in ({1}, {-1}):
        return 0
    (move,), labels = moves, {label for label, _ in swap.classes}
    for i in (i for i in range(len(names)) if i not in labels and confusion[i].sum() >= GRADED):
        last, there = place[i] == (len(names) - 1 if move > 0 else 0), place[i] - move
        if not last or confusion[i, at[there]] < PARTLY * confusion[i].sum():
            return 0
    return move


def explains_the_rest(confusion: np.ndarray, swap: Swap) -> bool:
    """Return whether a relabelling explains the answers: mostly right with it, other classes half-way above chance.

    For inputs of another source most classes are answered wrongly, and some pair of them looks exchanged.
    """
    labels = [label for label, _ in swap.classes]
    others = [i for i in range(len(confusion)) if i not in labels and confusion[i].any()]
    right, rows, chance = confusion.diagonal()[others].sum(), confusion[others].sum(), 1 / len(confusion)
    mostly = all(confusion[label, answer] == confusion[label].max() for label, answer in swap.classes)
    return mostly and bool(right >= rows * (1 + chance) / 2)


def _cycles(moved: Mapping[int, int]) -> Iterable[list[int]]:
    """Yield the cycles of a permutation that have more than one class."""
    left = {i for i, j in moved.items() if i != j}
    while left:
        cycle = [min(left)]
        while moved[cycle[-1]] != cycle[0]:
            cycle.append(moved[cycle[-1]])
        left -= set(cycle)
        yield cycle


@dataclass(frozen=True)
class Agreement:
    """How far answers agree with labels beyond chance.

    Args:
        share: share of right answers.
        chance: expected share of right answers at these frequencies.
        kappa, error: (share - chance) / (1 - chance) and its standard error (Cohen 1960).
        n: rows.
    """

    share: float
    chance: float
    kappa: float
    error: float
    n: int


def confusion_of(labels: np.ndarray, answers: np.ndarray, size: int) -> np.ndarray:
    """Return (size, size) counts, labels by answers; rows without a label, -1, are left out."""
    counts, known = np.zeros((size, size), dtype=np.int64), labels >= 0
    np.add.at(counts, (labels[known], answers[known]), 1)
    return counts


def agreement(confusion: np.ndarray) -> Agreement:
    """Return how far (K, K) counts agree, labels by answers."""
    n = max(1, int(confusion.sum()))
    share, chance = float(np.trace(confusion)) / n, float(confusion.sum(0) @ confusion.sum(1)) / n**2
    chance = min(chance, 1 - 1e-9)
    spread = max(share * (1 - share), chance * (1 - chance) / 2)
    return Agreement(share, chance, (share - chance) / (1 - chance), math.sqrt(spread / n) / (1 - chance), n)


def is_less(before: Agreement, after: Agreement, errors: float = ERRORS) -> bool:
    """Return whether answers agree less with labels than before, by this many standard errors."""
    return before.kappa - after.kappa >= errors * math.hypot(before.error, after.error)


def is_lost(before: Agreement, after: Agreement) -> bool:
    """Return whether answers agree with labels significantly less than before, and no better than by chance."""
    return is_less(before, after) and abs(after.kappa) <= 2 * after.error and after.kappa <= before.kappa / 4


def signed_correlation(answers: np.ndarray, numbers: np.ndarray) -> tuple[float, bool, bool]:
    """Return the correlation of (n,) answers with numbers, and whether it is surely negative, and surely positive."""
    correlation, n = correlation_of(answers, numbers), int((~np.isnan(numbers)).sum())
    is_sure = abs(correlation) >= LEAST and abs(correlation) * math.sqrt(n) >= ERRORS
    return correlation, is_sure and correlation < 0, is_sure and correlation > 0


SCALES = (2.54, 1 / 0.4536, 7.0, 12.0, 20.0, 24.0, 25.0, 28.35, 30.48, 100 / 3, 50.0, 60.0, 3600.0, 86_400.0,
          *(10.0**power for power in range(1, 10)))  # fmt: skip
"""Factors between units: inches and centimetres, kilograms and pounds, days and weeks, per cent of grades up to five.
None is 2 or less, as prices and grades drift so far."""
UNITS = (*((factor, 0.0) for scale in SCALES for factor in (scale, 1 / scale)),
         (1.8, 32.0), (1 / 1.8, -32 / 1.8), (1.0, 273.15), (1.0, -273.15))  # fmt: skip
"""Factors and summands that turn one unit into another."""
OTHERWISE, THE_SAME = 1e-4, 0.01
"""Probabilities by chance (Kolmogorov & Smirnov) up to which numbers are not of one distribution, and from which they
may be."""


def is_distributed_otherwise(numbers: np.ndarray, others: np.ndarray) -> bool:
    """Return whether two samples of numbers, (n,) and (m,), differ significantly in distribution."""
    return _same(numbers, others) <= OTHERWISE


def is_distributed_alike(numbers: np.ndarray, others: np.ndarray) -> bool:
    """Return whether two samples of numbers, (n,) and (m,), may have the same distribution."""
    return _same(numbers, others) >= THE_SAME


def find_unit(numbers: np.ndarray, others: np.ndarray) -> tuple[float, float] | None:
    """Return the factor and summand of a change of unit after which (n,) numbers are distributed like (m,) others."""
    found = {unit: _same(unit[0] * numbers + unit[1], others) for unit in UNITS}
    best = max(found, key=lambda unit: found[unit])
    return best if found[best] >= THE_SAME else None


CURVES = {"e to the power of": np.exp, "ten to the power of": lambda x: 10.0**x, "exp(x) - 1 of": np.expm1,
          "the logarithm of": np.log, "the logarithm to base ten of": np.log10, "log(x + 1) of": np.log1p}  # fmt: skip
CURVED = 10.0
"""Functions by which one file may have the numbers of another, and by how many times these then are spread more or
less, from which the function can be told from others, such as powers."""


def find_curve(numbers: np.ndarray, others: np.ndarray) -> str | None:
    """Return the name in CURVES of a function that turns (n,) numbers into ones distributed like (m,) others."""
    spread, wide = (float(np.subtract(*np.percentile(x, (75, 25)))) for x in (numbers, others))
    if max(wide, spread) < CURVED * min(wide, spread):
        return None
    with np.errstate(all="ignore"):
        turned = {name: curve(numbers) for name, curve in CURVES.items()}
    fits = {name: _same(of, others) for name, of in turned.items() if np.isfinite(of).all()}
    best = max(fits, key=lambda name: fits[name], default="")
    return best if best and fits[best] >= THE_SAME else None


def _same(numbers: np.ndarray, others: np.ndarray) -> float:
    from scipy.stats import ks_2samp

    return float(ks_2samp(numbers, others, method="asymp").pvalue)
