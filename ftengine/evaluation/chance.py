"""Deciding which differences are beyond chance, singly and among several."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from ftengine.api import Difference
from ftengine.text import Figure, ends

CHANCE = 0.05
"""p-values above it are taken for chance."""

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Adjust p-values by Holm's step-down method (1979), which bounds the chance of any false finding.

    Entries without a p-value are left out. statsmodels.stats.multitest has the method too, but collects all garbage of
    the process in each call: half a second.
    """
    defined = {key: p for key, p in p_values.items() if p is not None}
    adjusted, least = {}, 0.0
    for rank, key in enumerate(sorted(defined, key=defined.__getitem__)):
        least = min(max(least, defined[key] * (len(defined) - rank)), 1.0)
        adjusted[key] = least
    return {key: adjusted[key] for key in defined}


def is_beyond_chance(difference: Difference | None) -> bool:
    """Return whether both the interval and the (adjusted) p-value exclude a difference of 0."""
    if difference is None:
        return False
    p = difference.p if difference.p_adjusted is None else difference.p_adjusted
    return p is not None and p <= CHANCE and near_end(difference) > 0


def got_worse(differences: Mapping[Key, Difference]) -> dict[Key, float]:
    """Return the differences that are worse beyond chance, with p adjusted for all of them (Holm).

    Differences without a p-value are left out.
    """
    adjusted = holm({key: difference.p for key, difference in differences.items()})
    return {key: p for key, p in adjusted.items() if differences[key].better is False and p <= CHANCE}


def near_end(change: Figure) -> float:
    """Return the end of a change's interval that is nearer to 0; 0 if it contains 0 or there is no interval."""
    low, high = ends(change) or (0.0, 0.0)
    return 0.0 if low <= 0 <= high else min(abs(low), abs(high))
