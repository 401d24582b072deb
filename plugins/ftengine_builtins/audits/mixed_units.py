"""Numbers in two scales: percentages beside fractions, cents beside euros, a thousands point read as a decimal one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ftengine.api import AuditedData
from ftengine_builtins.audits.word_scores import WordRidge, draw_rows, tf_idf

FACTOR = 100
SHARE, FEWEST = 0.05, 20
"""Share of the numbers, and how many, that each of both is at least."""
LOW, MOST_LOW = 0.1, 0.25
"""Part of its range that at most such a share of either lies below. Numbers spread over all sizes, such as rates of
rare events, have half of them there, and no two units."""
UNLIKE, ALIKE = 0.01, 0.3
"""Probability by chance (Kolmogorov-Smirnov) below which percentages divided are not spread as fractions are, and the
distance up to which they are, however many there are."""
PENALTY, SAMPLE, FEWEST_ROWS = 0.3, 700, 60
SCALES = (10.0, 100.0, 1000.0, 10_000.0, 24.0, 60.0, 7.0, 12.0, 20.0, 25.0, 50.0)
"""Factors between two scales: powers of ten, units of time, per cent of grades up to five, four and two."""
FEW, FEW_SHARE, GAP = 8, 0.03, 3.0
"""Numbers of a scale, at least, also as a share of all; and ratio of neighbours from which there is a gap."""
GAIN, TOLD, SAME = 0.1, 0.3, 0.25
"""By how much the correlation of logarithms with what words predict rises once the smaller numbers are multiplied, what
it is then at least, and the distance (Kolmogorov & Smirnov) up to which both are distributed alike then."""
THOUSAND, MOSTLY = 1000, 0.9
"""Nine in ten of the numbers that a point was read in have a fraction: 2.000 has none."""


def find_percents(values: np.ndarray) -> np.ndarray | None:
    """Return the indices of numbers above 1 that, divided by 100, are distributed like those from 0 to 1.

    Args:
        values: (n,) numbers to be learnt.
    """
    from scipy.stats import ks_2samp

    if values.min() < 0 or values.max() > FACTOR:
        return None
    is_high = values > 1
    low, high = values[~is_high], values[is_high] / FACTOR
    if min(len(low), len(high)) < max(FEWEST, SHARE * len(values)) or np.isin(low, (0, 1)).all():
        return None
    if max((low < LOW).mean(), (high < LOW).mean()) > MOST_LOW:
        return None
    test = ks_2samp(low, high, method="asymp")
    return np.flatnonzero(is_high) if test.pvalue >= UNLIKE and test.statistic <= ALIKE else None


def converted_fit(data: AuditedData) -> tuple[float, float] | None:
    """Return the correlations of numbers with words' predictions: as they are, and with percentages divided."""
    rows = draw_rows(data, SAMPLE, numbers=True)
    if rows is None or rows.numbers is None or len(rows.texts) < FEWEST_ROWS:
        return None
    given, ridge = rows.numbers, WordRidge(tf_idf(rows.texts))
    targets = np.stack([given, np.where(given > 1, given / FACTOR, given)], 1)
    predicted = ridge.leave_one_out(targets, PENALTY)
    before, after = (float(np.corrcoef(predicted[:, i], targets[:, i])[0, 1]) for i in (0, 1))
    return (before, after) if np.isfinite([before, after]).all() else None


@dataclass(frozen=True)
class Scale:
    """Numbers that are too small by a factor.

    Args:
        small: (n,) whether a number is one of them.
        factor: by which they are like the others, or go on where these end.
        before, after: correlations of all logarithms with what words predict, as they are and multiplied; None where
            the way of writing shows it.
    """

    small: np.ndarray
    factor: float
    before: float | None = None
    after: float | None = None


def find_scale(data: AuditedData) -> tuple[Scale, list[str], np.ndarray] | None:
    """Return numbers in another scale than the others, with the places and numbers of the rows that were looked at."""
    rows = draw_rows(data, SAMPLE, numbers=True)
    if rows is None or rows.numbers is None or len(rows.texts) < FEWEST_ROWS or rows.numbers.min() <= 0:
        return None
    found = _by_writing(rows.numbers) or _by_words(rows.numbers, rows.texts)
    return None if found is None else (found, rows.places, rows.numbers)


def _by_writing(values: np.ndarray) -> Scale | None:
    """Find thousands points read as decimal ones: whole numbers below 1,000, and far smaller ones with three digits."""
    is_fraction = np.abs(values - np.rint(values)) > 1e-9
    if not is_fraction.any() or values.max() >= THOUSAND or values.min() < 1:
        return None
    small = values <= np.ceil(values[is_fraction].max())  # 1.000 is one of them
    if min(small.sum(), (~small).sum()) < max(FEW, FEW_SHARE * len(values)):
        return None
    whole = np.abs(values[small] * THOUSAND - np.rint(values[small] * THOUSAND)) < 1e-6
    is_gap = values[~small].min() >= GAP * values[small].max()
    return Scale(small, THOUSAND) if whole.all() and is_gap and is_fraction[small].mean() >= MOSTLY else None


def _by_words(values: np.ndarray, texts: list[str]) -> Scale | None:
    """Find numbers that words predict better once they are multiplied, and that are like the others then."""
    from scipy.stats import ks_2samp

    logs, ridge, best = np.log(values), WordRidge(tf_idf(texts)), None
    masks = [mask for mask in _parts(logs) if min(mask.sum(), (~mask).sum()) >= max(FEW, FEW_SHARE * len(values))]
    tried = [(mask, factor) for mask in masks for factor in SCALES]
    if not tried:
        return None
    targets = np.stack([logs, *(logs + mask * np.log(factor) for mask, factor in tried)], 1)
    predicted = ridge.leave_one_out(targets, PENALTY)
    fits = [float(np.corrcoef(predicted[:, i], targets[:, i])[0, 1]) for i in range(targets.shape[1])]
    for i, (mask, factor) in enumerate(tried, 1):
        alike = ks_2samp(targets[mask, i], logs[~mask], method="asymp").statistic <= SAME
        if alike and fits[i] >= max(TOLD, fits[0] + GAIN) and (best is None or fits[i] > (best.after or 0.0)):
            best = Scale(mask, factor, fits[0], fits[i])
    return best


def _parts(logs: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the smaller numbers, as they may be of another scale: by fractions, by gaps, and by two means."""
    values = np.exp(logs)
    whole = np.abs(values - np.rint(values)) < 1e-6 * values
    if 0 < whole.sum() < len(whole):
        yield whole if np.median(logs[whole]) < np.median(logs[~whole]) else ~whole
    ordered = np.unique(logs)
    gaps = np.diff(ordered)
    for at in np.argsort(-gaps, kind="stable")[:3]:
        if gaps[at] >= np.log(GAP):
            yield logs <= ordered[at]
    limits = ordered[:-1]
    if len(limits):
        spread = [(logs <= limit).sum() * logs[logs <= limit].var() + (logs > limit).sum() * logs[logs > limit].var()
                  for limit in limits]  # fmt: skip
        yield logs <= limits[int(np.argmin(spread))]
