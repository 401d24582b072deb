"""Examples on two sides of a split: counted, told, and taken out of training where the recipe says so."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ftengine.data.near import Near
from ftengine.data.read import Rows
from ftengine.data.units import Units

SHOWN_LEAKS = 5


def find_leaks(splits: Mapping[str, Rows], units: Units, near: Near | None) -> list[dict[str, Any]]:
    """Count, for each pair of splits, the rows of the second that are also in the first.

    Returns:
        A mapping for each pair with any: "between", "count" (rows that are equal), "near" (further rows that are
        near duplicates), "places" (of up to five, equal ones first).
    """
    leaks = []
    for known, held in combinations(splits, 2):
        partner = _partners(units, near, known)
        of = units.of[held]
        equal = partner[of] == of
        close = ~equal & (partner[of] >= 0)
        if not (equal.any() or close.any()):
            continue
        of_each = np.flatnonzero(equal)[: SHOWN_LEAKS - bool(close.any())], np.flatnonzero(close)
        shown = np.concatenate(of_each)[:SHOWN_LEAKS]
        distinct, first = np.unique(units.of[known], return_index=True)
        there = first[np.searchsorted(distinct, partner[of[shown]])]
        places = [
            f"{splits[known].where(a)} {'=' if equal[b] else '≈'} {splits[held].where(b)}"
            for a, b in zip(there, shown, strict=True)
        ]
        leaks.append({"between": [known, held], "count": int(equal.sum()), "near": int(close.sum()), "places": places})
    return leaks


def leaked(units: Units, near: Near | None, held: list[str]) -> np.ndarray:
    """Say which rows of training are also in one of the held-out splits."""
    found = np.zeros(len(units.of["train"]), dtype=bool)
    for name in held:
        found |= _partners(units, near, name)[units.of["train"]] >= 0
    return found


def _partners(units: Units, near: Near | None, name: str) -> np.ndarray:
    """Return for each unit one of a split that is equal (itself) or near, -1 where there is none."""
    members = units.members(name)
    partner = np.full(len(units), -1)
    if near is not None:
        for one, other in ((0, 1), (1, 0)):
            there = near.pairs[members[near.pairs[:, one]]][::-1]  # of several the first found stays
            partner[there[:, other]] = there[:, one]
    return np.where(members, np.arange(len(units)), partner)


def describe(leak: Mapping[str, Any], splits: Mapping[str, Rows], threshold: float | None) -> str:
    """Say a leak in a sentence without its end."""
    known, held = leak["between"]
    equal, near, total = leak["count"], leak["near"], len(splits[held])
    if not near:
        return f"{equal} of {total} {held} examples are also in {known} (e.g. {leak['places'][0]})"
    close = f"near duplicates of examples there (similarity ≥ {threshold:g}; e.g. {leak['places'][-1]})"
    if not equal:
        return f"{near} of {total} {held} examples are not in {known} word for word, but {close}"
    return f"{equal} of {total} {held} examples are also in {known} (e.g. {leak['places'][0]}), {near} more are {close}"
