"""Leaks: rows and groups that two splits share."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ftengine.data.distinct import Distinct
from ftengine.data.near import Near
from ftengine.data.rows import DataRows
from ftengine.run.recipe import DataSection
from ftengine.text import counted, quoted

SHOWN_LEAKS = 5
FEW_EQUAL, SHORT = 5, 30
"""Equal texts of at most so many characters are taken for a placeholder ("N/A") rather than copies of an example."""


def find_leaks(
    splits: Mapping[str, DataRows], distinct: Distinct, near: Near | None, groups: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Count, for each pair of splits, the rows of the second that are also in the first.

    Args:
        near: near duplicates among distinct rows; None if they were not searched for.
        groups: for each split the hash of each row's group; empty where the data has none.

    Returns:
        A mapping for each pair with a leak: "between", "count" (rows that are equal), "near" (further rows that are
        near duplicates), "groups" (number of shared groups, if the data has groups), "rows" (rows of all these kinds),
        "one_text" (the short text of most of the equal rows, and how many have it; None if there is none), "places" (of
        up to five rows: equal ones, near ones, rows of shared groups).
    """
    leaks = []
    for first, second in combinations(splits, 2):
        partner = _partners(distinct, near, first)
        of = distinct.of[second]
        equal = partner[of] == of
        close = ~equal & (partner[of] >= 0)
        shared = np.isin(groups[second], groups[first]) if groups else np.zeros(len(of), dtype=bool)
        if not (equal.any() or close.any() or shared.any()):
            continue
        room = SHOWN_LEAKS - int(shared.any())
        shown = np.concatenate([np.flatnonzero(equal)[: room - int(close.any())], np.flatnonzero(close)])[:room]
        signs = np.where(equal[shown], "=", "≈").tolist()
        rows = _first_of(distinct.of[first], partner[of[shown]])
        if shared.any():
            others = np.flatnonzero(shared)[: 1 if len(shown) else SHOWN_LEAKS]
            rows = np.concatenate([rows, _first_of(groups[first], groups[second][others])])
            shown, signs = np.concatenate([shown, others]), signs + ["&"] * len(others)
        leaks.append(
            {
                "between": [first, second],
                "count": int(equal.sum()),
                "near": int(close.sum()),
                **({"groups": len(np.unique(groups[second][shared]))} if groups else {}),
                "rows": int((equal | close | shared).sum()),
                "one_text": _one_text(distinct, of[equal]),
                "places": [
                    f"{splits[first].where(a)} {sign} {splits[second].where(b)}"
                    for a, sign, b in zip(rows, signs, shown, strict=True)
                ],
            }
        )
    return leaks


def _one_text(distinct: Distinct, numbers: np.ndarray) -> list[Any] | None:
    """Return the short text that most rows have, ignoring case, and how many have it; None if there is no such text."""
    kinds, counts = np.unique(numbers, return_counts=True)
    order = [i for i in np.argsort(-counts, kind="stable")[:SHOWN_LEAKS] if counts[i] >= FEW_EQUAL]
    texts = [distinct.text(int(kinds[i])).strip() for i in order]
    count = sum(int(counts[i]) for i, text in zip(order, texts, strict=True) if text.casefold() == texts[0].casefold())
    return [texts[0], count] if texts and 2 * count >= len(numbers) and len(texts[0]) <= SHORT else None


def _first_of(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return for each target the index of the first of `values` that equals it."""
    distinct, first = np.unique(values, return_index=True)
    return first[np.searchsorted(distinct, targets)]


def leaked(
    distinct: Distinct, near: Near | None, split: str, others: list[str], groups: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return (rows,) bool, whether each row of a split, or its group, is also in one of the other splits."""
    mask = np.zeros(len(distinct.of[split]), dtype=bool)
    for name in others:
        mask |= _partners(distinct, near, name)[distinct.of[split]] >= 0
        if groups:
            mask |= np.isin(groups[split], groups[name])
    return mask


def _partners(distinct: Distinct, near: Near | None, name: str) -> np.ndarray:
    """Return for each distinct row an equal or near row of a split: itself if the split has it, -1 if there is none."""
    members = distinct.members(name)
    partner = np.full(len(distinct), -1)
    if near is not None:
        for column, other_column in ((0, 1), (1, 0)):
            pairs = near.pairs[members[near.pairs[:, column]]][::-1]  # of several the first wins
            partner[pairs[:, other_column]] = pairs[:, column]
    return np.where(members, np.arange(len(distinct)), partner)


def describe(leak: Mapping[str, Any], splits: Mapping[str, DataRows], section: DataSection) -> str:
    """Describe a leak in a clause without a full stop."""
    first, second = ("training" if name == "train" else name for name in leak["between"])
    equal, near, groups, total = leak["count"], leak["near"], leak.get("groups", 0), len(splits[leak["between"][1]])
    places, parts = leak["places"], []
    if equal:
        repeat = "repeats" if equal == 1 else "repeat"
        of_one = (
            f", {leak['one_text'][1]:,} of them by one text, {quoted(leak['one_text'][0])}" if leak["one_text"] else ""
        )
        parts.append(f"{equal:,} of {total:,} {second} rows {repeat} a {first} row (e.g. {places[0]}){of_one}")
    if near:
        # Each kind has a place; that of groups comes last.
        place = places[-2] if groups else places[-1]
        repeat = f"nearly {'repeats' if near == 1 else 'repeat'}"
        repeated = (
            f"{near:,} more {repeat} one" if equal else f"{near:,} of {total:,} {second} rows {repeat} a {first} row"
        )
        parts.append(f"{repeated} (Jaccard similarity ≥ {section.near_duplicates:g}, e.g. {place})")
    if groups:
        values, are = counted(groups, "value"), "is" if groups == 1 else "are"
        shared = f"{values} of column {section.group_column!r} {are} in the {first} and in the {second} split"
        parts.append(f"{shared} (e.g. {places[-1]})")
    return ", and ".join(parts)
