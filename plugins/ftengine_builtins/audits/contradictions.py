"""Audit `contradictions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding

ALARM = 0.02
"""Share of rows whose text also stands there with another label, from which it is an alarm."""
SHOWN_PLACES = 5
LOOKED_AT = 1000
"""Rows of a split that show whether targets are sequences."""


class Contradictions(Audit):
    """Equal texts with unequal labels; at least one of each must be wrong."""

    name = "contradictions"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield one finding, over all splits together."""
        if not any(targets.any() for targets in data.targets.values()):
            return
        # Words that are written otherwise say the same of the whole, though not each of itself, as tags of words do.
        equal = data.distinct if data.same_words is None or _tags_words(data) else data.same_words
        texts, rows, places = contradicting(data, equal)
        if texts:
            share = rows / sum(map(len, data.splits.values()))
            subject = "1 text stands" if texts == 1 else f"{texts:,} texts stand"
            yield Finding(
                kind="labels",
                level="alarm" if share >= ALARM else "note",
                text=f"{subject} in the data with more than one label ({rows:,} rows, e.g. {places[0]}).",
                figures={"texts": texts, "rows": rows, "share": share},
                places=tuple(places),
            )


def _tags_words(data: AuditedData) -> bool:
    """Say whether targets are sequences, such as a tag for each word: lists that say one thing several times."""
    targets = (view.target for rows in data.splits.values() for view in islice(rows, LOOKED_AT))
    return any(isinstance(x, (list, tuple)) and len(set(map(str, x))) < len(x) for x in targets)


def contradicting(data: AuditedData, equal: Mapping[str, np.ndarray]) -> tuple[int, int, list[str]]:
    """Count equal rows with unequal targets.

    Args:
        data: what the audit looks at.
        equal: for each split, (rows,) a number that rows of the same text share.

    Returns:
        The number of texts with more than one target, that of the rows that have them, and places of pairs.
    """
    names = list(data.splits)
    text, target = (np.concatenate([of[name] for name in names]) for of in (equal, data.targets))
    known = np.flatnonzero(target)
    order = known[np.lexsort((known, text[known]))]
    first = np.searchsorted(text[order], text[order])  # position of the first row of the same text
    differs = target[order] != target[order[first]]
    torn = np.unique(text[order[differs]])
    starts = np.cumsum([0, *(len(data.splits[name]) for name in names)])

    def where(row: int) -> str:
        split = int(np.searchsorted(starts, row, side="right")) - 1
        return data.splits[names[split]].where(row - int(starts[split]))

    places = []
    for one in torn[:SHOWN_PLACES]:
        at = int(np.flatnonzero(differs & (text[order] == one))[0])
        places.append(f"{where(int(order[first[at]]))} ≠ {where(int(order[at]))}")
    return len(torn), int(np.isin(text[order], torn).sum()), places
