"""Codes for a missing number, such as 999, among target numbers."""

import numpy as np

FEWEST, LEAST = 5, 0.01
"""How many equal numbers are a code, and their share of all."""
MOST = 0.5
"""Share of all numbers up to which it is a code."""
DISTINCT = 20
"""Further values that there are at least: of grades and counts up to ten, the last may lie apart."""
FAR = 0.5
"""Distance to the nearest other number, in units of the others' range."""
MOST_ZEROS = 0.2
"""Share of all numbers up to which 0 may be one: most claims are for nothing."""
WRITTEN = (-9.0, -99.0, -999.0, -9999.0)
NEGATIVE = (-1.0, *WRITTEN)
TIMES = 2
"""Usual codes, which are near the others as well where these are not negative, and how many times as frequent as the
least of the others they are then at least."""


def find_code(values: np.ndarray) -> tuple[float, bool] | None:
    """Return a value that many numbers have, far from all others, or a usual code; None if there is none.

    Also whether it looks like a code: 0, -1 and a round limit may be values.
    """
    numbers, counts = np.unique(values, return_counts=True)
    if len(numbers) <= DISTINCT:
        return None
    for at, near in ((-1, -2), (0, 1)):
        code, count, gap = numbers[at], counts[at], abs(numbers[at] - numbers[near])
        others = np.delete(numbers, at)
        if not max(FEWEST, LEAST * len(values)) <= count <= (MOST if code else MOST_ZEROS) * len(values):
            continue
        is_usual = code in NEGATIVE and others[0] >= 0 and count >= TIMES * counts[near]
        if gap >= FAR * np.ptp(others) or is_usual:
            nines = code >= 99 and set(f"{code:.6g}") == {"9"}
            return float(code), bool(nines or code in WRITTEN)
    return None
