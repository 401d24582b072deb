"""What is beyond chance where several measures are looked at together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import ndtri, stdtr, stdtrit

from ftengine.api import Difference
from ftengine.api.figures import Figure, Key, ends, holm

CHANCE = 0.05
"""Adjusted p-values above it are taken for chance."""


def got_worse(
    differences: Mapping[Key, Difference], resamples: int, examples: Mapping[Key, int] | None = None
) -> dict[Key, float]:
    """Return which of several differences are to the worse beyond chance, with p adjusted over all (Holm 1979).

    Args:
        differences: those without a p are not judged.
        resamples: of the bootstrap.
        examples: how many are behind each difference whose p may be a bootstrap's; None where none is.
    """
    judged, n = {key: one for key, one in differences.items() if one.p is not None}, examples or {}
    adjusted = holm({key: _resolved(one, one.p, resamples, n.get(key)) for key, one in judged.items()})
    worse = {key: p for key, p in adjusted.items() if judged[key].better is False and p <= CHANCE}
    return {key: max(p, judged[key].p) for key, p in worse.items()}  # never below the p that stands in the tables


def _resolved(difference: Figure, p: float, resamples: int, n: int | None) -> float:
    """Return a p-value that may be multiplied.

    A bootstrap's ends at about 2/(B + 1), so that among 25 measures nothing could ever be beyond chance. Where it is
    there, Student's t says how much less it is: with the standard error that the interval stands for. One below that
    end is an exact test's, and stays.
    """
    found = ends(difference)
    if n is None or n < 2 or found is None or not found[1] > found[0]:
        return p
    least = 2 * stdtr(n - 1, ndtri(1 / (resamples + 1)) * math.sqrt((n - 1) / n))
    if not math.isclose(p, least, rel_tol=1e-9):
        return p
    error = (found[1] - found[0]) / 2 / stdtrit(n - 1, 1 - CHANCE / 2)
    return min(p, 2 * float(stdtr(n - 1, -abs(difference.value) / error)))


@dataclass(frozen=True)
class Apart:
    """First minus second of two figures on different examples."""

    value: float
    low: float
    high: float

    def turned(self) -> Apart:
        """Return second minus first."""
        return Apart(-self.value, -self.high, -self.low)


def apart(first: Figure, second: Figure) -> Apart | None:
    """Return first - second of two figures on different examples; None where one has no interval.

    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10; for other
    figures the same combination holds as far as their intervals do (Zou & Donner 2008).
    """
    one, other = ends(first), ends(second)
    if one is None or other is None:
        return None
    value = first.value - second.value
    low = value - math.hypot(first.value - one[0], other[1] - second.value)
    high = value + math.hypot(one[1] - first.value, second.value - other[0])
    return Apart(value, low, high)


def near_end(change: Figure) -> float:
    """Return how large a change is at least, by its interval; 0 where that holds 0, or there is none."""
    low, high = ends(change) or (0.0, 0.0)
    return 0.0 if low <= 0 <= high else min(abs(low), abs(high))
