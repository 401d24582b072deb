"""Numbers that are partly percentages and partly fractions."""

from __future__ import annotations

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
