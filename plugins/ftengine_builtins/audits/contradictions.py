"""Audit `contradictions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View

ALARM = 0.02
"""Share of rows whose text also stands there with another label, from which it is an alarm."""
MANY_ANSWERS = 10
"""Different answers to one prompt from which it is said, however few of the rows that is."""
SHOWN_PLACES = 5
LOOKED_AT = 1000
"""Rows of a split that show whether targets are sequences."""


class Contradictions(Audit):
    """Equal texts with unequal labels, of which at least one must be wrong; and equal prompts answered differently."""

    name = "contradictions"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield one finding, over all splits together."""
        if not any(targets.any() for targets in data.targets.values()):
            yield from _answered_otherwise(data)
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


def _answered_otherwise(data: AuditedData) -> Iterator[Finding]:
    """Say where equal inputs have different free answers, which may be right but cannot all be learnt."""
    if not any(_answer(view) for rows in data.splits.values() for view in islice(rows, LOOKED_AT)):
        return
    seen: dict[bytes, dict[bytes, str]] = {}  # of each input the answers, with the place of the first
    counts: dict[bytes, int] = {}
    for rows in data.splits.values():
        for number, view in enumerate(rows):
            if answer := _answer(view):
                asked, said = _hash(list(view.inputs)), _hash(answer)
                counts[asked] = counts.get(asked, 0) + 1
                if said not in seen.setdefault(asked, {}):
                    seen[asked][said] = rows.where(number) if len(seen[asked]) < 2 else ""
    torn = [asked for asked, answers in seen.items() if len(answers) > 1]
    rows_of, total = sum(counts[asked] for asked in torn), sum(counts.values())
    most = max((len(seen[asked]) for asked in torn), default=0)
    if not torn or (rows_of < ALARM * total and most < MANY_ANSWERS):
        return
    places = tuple(" ≠ ".join(place for place in seen[asked].values() if place) for asked in torn[:SHOWN_PLACES])
    subject = "1 prompt stands" if len(torn) == 1 else f"{len(torn):,} prompts stand"
    yield Finding(
        kind="data",
        level="note",
        text=f"{subject} in the data with different answers ({rows_of:,} of {total:,} rows, one with {most:,} answers, "
        f"e.g. {places[0]}): from the prompt alone none can be told, so a column that belongs to it may be missing.",
        figures={"texts": len(torn), "rows": rows_of, "share": rows_of / total, "answers": most},
        places=places,
    )


def _answer(view: View) -> Any:
    """Return the free text that answers a row's input; None where there is none, or it is the input itself."""
    target = view.target
    if view.classes or not view.inputs or not target or not isinstance(target, (str, list)):
        return None
    return None if target in (view.inputs, view.inputs[0]) or not isinstance(view.inputs[0], str) else target


def _hash(value: Any) -> bytes:
    return blake2b(repr(value).encode(errors="surrogatepass"), digest_size=16).digest()


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
