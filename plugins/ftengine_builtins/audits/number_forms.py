"""How target numbers are written: rounded, standardised, one number for nearly all rows, numbered rows."""

from __future__ import annotations

import numpy as np

from ftengine_builtins.label_fit import is_distributed_alike

FEWEST = 20
"""Numbers below which nothing is said of them."""
NEARLY_ALL, SOME = 0.95, 0.25
"""Quantile of one file's digits that lies below this quantile of the other's for numbers to be rounded in the first."""
FEW_LEFT, MANY = 20, 5
"""Distinct numbers, at most, that are left of rounded ones, and how many times as many the others are."""
NEAR = 0.1
"""How far the mean of standardised numbers may be from 0, and their standard deviation and a range from 1."""
DENSE = 2.0
"""Range of numbered rows, at most, in numbers."""


def significant_digits(numbers: np.ndarray) -> np.ndarray:
    """Return (n,) how many digits numbers have without zeros at either end: 3 for 0.250, 1 for 1,000,000."""
    mantissas = (f"{abs(number):.9e}".partition("e")[0].replace(".", "").rstrip("0") for number in numbers.tolist())
    return np.array([max(1, len(digits)) for digits in mantissas])


def are_rounded(numbers: np.ndarray, others: np.ndarray) -> bool:
    """Return whether (n,) numbers have far fewer digits than (m,) others of the same size, and few are distinct."""
    if min(len(numbers), len(others)) < FEWEST:
        return False
    distinct, those = len(np.unique(numbers)), len(np.unique(others))
    if not 1 < distinct <= FEW_LEFT or those / len(others) < min(1.0, MANY * distinct / len(numbers)) / 2:
        return False
    if those < MANY * distinct or not np.quantile(others, 0.1) <= np.median(numbers) <= np.quantile(others, 0.9):
        return False
    digits, further = significant_digits(numbers), significant_digits(others)
    return bool(np.quantile(digits, NEARLY_ALL) < np.quantile(further, SOME))


def scaled_form(numbers: np.ndarray, others: np.ndarray) -> str | None:
    """Return in words how (n,) numbers are scaled, if (m,) others are not and are distributed alike otherwise."""
    if min(len(numbers), len(others)) < FEWEST or not numbers.std() or not others.std():
        return None
    if not is_distributed_alike(*((of - of.mean()) / of.std() for of in (numbers, others))):
        return None
    forms = [_form(of) for of in (numbers, others)]
    return forms[0] if forms[0] != forms[1] and (forms[1] is None) else None


def _form(numbers: np.ndarray) -> str | None:
    if abs(numbers.mean()) <= NEAR and abs(numbers.std() - 1) <= NEAR:
        return "standardised (mean 0, standard deviation 1)"
    if numbers.min() >= -NEAR / 2 and np.ptp(numbers) >= 1 - NEAR and numbers.max() <= 1 + NEAR / 2:
        return "scaled to 0 to 1"
    return None


def are_row_numbers(numbers: np.ndarray) -> bool:
    """Return whether (n,) numbers are a step apart, each once, with hardly any left out, as ids and ranks are."""
    ordered = np.sort(numbers)
    if len(numbers) < 5 * FEWEST or not (steps := np.diff(ordered)).min() > 0:
        return False
    step = float(steps.min())
    is_whole = np.abs(steps / step - np.rint(steps / step)).max() < 1e-6
    return bool(is_whole and step >= 1 and np.ptp(ordered) / step <= DENSE * len(numbers))
