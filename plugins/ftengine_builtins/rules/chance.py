"""What is beyond chance where several measures are looked at together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ftengine.api import Difference
from ftengine.api.figures import Figure, Key, ends, holm

CHANCE = 0.05
"""Adjusted p-values above it are taken for chance."""


def got_worse(differences: Mapping[Key, Difference]) -> dict[Key, float]:
    """Return which of several differences are to the worse beyond chance, with p adjusted over all (Holm 1979).

    Those without a p are not judged.
    """
    judged = {key: one for key, one in differences.items() if one.p is not None}
    adjusted = holm({key: one.p for key, one in judged.items()})
    return {key: p for key, p in adjusted.items() if judged[key].better is False and p <= CHANCE}


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
