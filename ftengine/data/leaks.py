"""Rows and groups on two sides of a split: found, put into words, and named where training is to lose them."""

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
"""Equal rows of so few characters that are rather a placeholder ("N/A") than copies of one example."""


def find_leaks(
    splits: Mapping[str, DataRows], distinct: Distinct, near: Near | None, groups: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Count, for each pair of splits, the rows of the second that are also in the first.

    Args:
        near: near duplicates among distinct rows; None where they were not looked for.
        groups: for each split the hash of each row's group; empty where the data has none.

    Returns:
        A mapping for each pair with any: "between", "count" (rows that are equal), "near" (further rows that are
        near duplicates), "groups" (number of groups in both, where the data has groups), "rows" (rows of all these
        kinds), "one_text" (the short text that most of the equal rows have, and how many; None where there is none),
        "places" (of up to five: equal ones, near ones, rows of one group).
    """
    leaks = []
    for known, held in combinations(splits, 2):
        partner = _partners(distinct, near, known)
        of = distinct.of[held]
        equal = partner[of] == of
        close = ~equal & (partner[of] >= 0)
        shared = np.isin(groups[held], groups[known]) if groups else np.zeros(len(of), dtype=bool)
        if not (equal.any() or close.any() or shared.any()):
            continue
        room = SHOWN_LEAKS - int(shared.any())
        shown = np.concatenate([np.flatnonzero(equal)[: room - int(close.any())], np.flatnonzero(close)])[:room]
        signs = np.where(equal[shown], "=", "≈").tolist()
        there = _first_of(distinct.of[known], partner[of[shown]])
        if shared.any():
            others = np.flatnonzero(shared)[: 1 if len(shown) else SHOWN_LEAKS]
            there = np.concatenate([there, _first_of(groups[known], groups[held][others])])
            shown, signs = np.concatenate([shown, others]), signs + ["&"] * len(others)
        leaks.append(
            {
                "between": [known, held],
                "count": int(equal.sum()),
                "near": int(close.sum()),
                **({"groups": len(np.unique(groups[held][shared]))} if groups else {}),
                "rows": int((equal | close | shared).sum()),
                "one_text": _one_text(distinct, of[equal]),
                "places": [
                    f"{splits[known].where(a)} {sign} {splits[held].where(b)}"
                    for a, sign, b in zip(there, signs, shown, strict=True)
                ],
            }
        )
    return leaks


def _one_text(distinct: Distinct, numbers: np.ndarray) -> list[Any] | None:
    """Return the text that most of some rows have, in any case, and how many; None where it is long, or few have it."""
    kinds, counts = np.unique(numbers, return_counts=True)
    order = [i for i in np.argsort(-counts, kind="stable")[:SHOWN_LEAKS] if counts[i] >= FEW_EQUAL]
    texts = [distinct.text(int(kinds[i])).strip() for i in order]
    count = sum(int(counts[i]) for i, text in zip(order, texts, strict=True) if text.casefold() == texts[0].casefold())
    return [texts[0], count] if texts and 2 * count >= len(numbers) and len(texts[0]) <= SHORT else None


def _first_of(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the index of the first of `values` that is equal, for each that is wanted."""
    known, first = np.unique(values, return_index=True)
    return first[np.searchsorted(known, wanted)]


def leaked(
    distinct: Distinct, near: Near | None, split: str, others: list[str], groups: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Say which rows of a split, or whose groups, are also in one of the others."""
    mask = np.zeros(len(distinct.of[split]), dtype=bool)
    for name in others:
        mask |= _partners(distinct, near, name)[distinct.of[split]] >= 0
        if groups:
            mask |= np.isin(groups[split], groups[name])
    return mask


def _partners(distinct: Distinct, near: Near | None, name: str) -> np.ndarray:
    """Return for each distinct row one of a split that is equal (itself) or near, -1 where there is none."""
    members = distinct.members(name)
    partner = np.full(len(distinct), -1)
    if near is not None:
        for one, other in ((0, 1), (1, 0)):
            there = near.pairs[members[near.pairs[:, one]]][::-1]  # of several the first found stays
            partner[there[:, other]] = there[:, one]
    return np.where(members, np.arange(len(distinct)), partner)


def describe(leak: Mapping[str, Any], splits: Mapping[str, DataRows], section: DataSection) -> str:
    """Put a leak into a sentence without its end."""
    known, held = ("training" if name == "train" else name for name in leak["between"])
    equal, near, groups, total = leak["count"], leak["near"], leak.get("groups", 0), len(splits[leak["between"][1]])
    places, parts = leak["places"], []
    if equal:
        repeat = "repeats" if equal == 1 else "repeat"
        of_one = (
            f", {leak['one_text'][1]:,} of them by one text, {quoted(leak['one_text'][0])}" if leak["one_text"] else ""
        )
        parts.append(f"{equal:,} of {total:,} {held} rows {repeat} a {known} row (e.g. {places[0]}){of_one}")
    if near:
        # Of several kinds each has a place; that of groups is the last, and the only one of them beside others.
        place = places[-2] if groups else places[-1]
        repeat = f"nearly {'repeats' if near == 1 else 'repeat'}"
        one = f"{near:,} more {repeat} one" if equal else f"{near:,} of {total:,} {held} rows {repeat} a {known} row"
        parts.append(f"{one} (Jaccard similarity ≥ {section.near_duplicates:g}, e.g. {place})")
    if groups:
        values, are = counted(groups, "value"), "is" if groups == 1 else "are"
        both = f"{values} of column {section.group_column!r} {are} in the {known} and in the {held} split"
        parts.append(f"{both} (e.g. {places[-1]})")
    return ", and ".join(parts)
