"""Ratios of sums, undefined where there is nothing to divide by."""

import numpy as np


def ratio(numerator, denominator):
    """Return numerator / denominator by element; nan where the denominator is 0 or less."""
    with np.errstate(all="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def mean_of_known(values):
    """Return the mean over the last axis without nan; nan where nothing is known."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1))


def known(value):
    """Return a number as JSON has it: None where it is not finite."""
    return float(value) if np.isfinite(value) else None
