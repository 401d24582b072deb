"""Weighted sums, counts and means over examples, for many weightings at once; nan where undefined."""

from collections.abc import Mapping

import numpy as np

from ftengine.api import Metric, Rows

BLOCK = 2**20
"""Weights that are held as float64 at once: 8 MiB."""

FEW_CODES = 16
"""Codes up to which a product with one column for each counts them faster than one resample after the other does."""


def totals(weights: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Return the weighted sums (B, k) of k columns, (n,) each, or of (n, m) columns, for weights (B, n)."""
    values = np.column_stack(columns)
    sums = np.zeros((len(weights), values.shape[1]))
    step = max(1, BLOCK // max(1, len(weights)))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        sums += np.asarray(weights[:, part], dtype=np.float64) @ np.asarray(values[part], dtype=np.float64)
    return sums


def counts(weights: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """Return the weight (B, size) of each code from 0 to size - 1, for codes (n,) and weights (B, n)."""
    if size <= FEW_CODES:
        return totals(weights, codes[:, None] == np.arange(size))
    return np.stack([np.bincount(codes, row, size) for row in weights])


def means(weights: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Return the weighted means (B, k) of k columns (n,), each over the examples where it is not nan."""
    values = np.column_stack(columns).astype(np.float64)
    there = ~np.isnan(values)
    sums = totals(weights, np.where(there, values, 0), there)
    return ratio(*np.split(sums, 2, axis=1))


def trials_of_means(rows: Rows, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return the number of examples behind means of columns, for proportions and means that are 0 or 1 everywhere.

    The latter are treated as proportions, so that their intervals have a width.
    """
    trials = {}
    for name, metric in metrics.items():
        values = rows[name][~np.isnan(rows[name])]
        if metric.proportion or (len(values) and values[0] in (0, 1) and np.ptp(values) == 0):
            trials[name] = float(len(values))
    return trials


def numbers(column: np.ndarray) -> np.ndarray:
    """Return a column of numbers, or of lists equally long, as (n, k) float64; raise ValueError for other lists."""
    column = np.asarray(column)
    values = np.stack([np.ravel(value) for value in column]) if column.dtype == object and len(column) else column
    return values.astype(np.float64, copy=False).reshape(len(values), -1 if values.size else 0)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return numerator / denominator by element; nan where the denominator is 0 or less."""
    with np.errstate(all="ignore"):
        return np.where(np.asarray(denominator) > 0, numerator / denominator, np.nan)


def mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without nan; nan if all are."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1))


def precision_recall_f1(right: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the three by element, from the numbers of right, predicted and true; 0/0 is nan."""
    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "f1": ratio(2 * right, predicted + true),
    }


def finite_or_none(value: float | np.ndarray) -> float | None:
    """Return a number for JSON: None if it is not finite."""
    return float(value) if np.isfinite(value) else None
