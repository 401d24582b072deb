"""Audit `mismatched-pairs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, counted, number
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.word_scores import tf_idf

FEWEST, LOOKED_AT = 40, 1_500
"""Pairs of a split below which nothing is said, and how many are looked at, the first."""
OFFSETS = (-1, 1, -2, 2, -3, 3)
"""Rows from that of an anchor whose positives are tried."""
SURE, CHANCE = 6.0, 3.0
"""Standard errors by which pairs surely share more words than a random arrangement of them does, and up to which they
may share as many."""
NEARER, SHARED = 0.1, 0.25
"""How much more words, as a cosine, an anchor shares with the best of all positives than with the best other anchor,
and how much at least: pairs of texts in two styles, a question and its answer, share fewer."""
IN_ORDER, OTHERWISE = 0.98, 0.8
"""Share of neighbours that stand in alphabetical order in a sorted column, and at most in one that is not."""
EXPLAINED = ("quality", "learning", "rows", "over-fitting", "worse")


class MismatchedPairs(Audit):
    """Finds positives that do not belong to their anchors: shifted by some rows, sorted, or shuffled.

    Pairs of such a split share no more words than a random arrangement does. An alarm if another arrangement shares
    more: positives of rows further up or down, those of a held-out split, or the best match of each anchor. A note if
    only one of the columns is in alphabetical order, as it may have been sorted alone. Pairs in two languages, which
    share no words, are not judged.
    """

    name = "mismatched-pairs"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        pairs = {split: _pairs(rows) for split, rows in data.splits.items()}
        pairs = {split: of for split, of in pairs.items() if len(of[0]) >= FEWEST}
        overlaps = {split: find_overlap(*of) for split, of in pairs.items()}
        for split, found in overlaps.items():
            if found is None or found.own > CHANCE:
                continue
            others = {name: overlap.own for name, overlap in overlaps.items() if overlap is not None and name != split}
            why = _reason(found) or _by_other_splits(others)
            ordered = _ordered(pairs[split])
            if why is not None or ordered:
                yield _finding(data, split, found, why, ordered)


@dataclass(frozen=True)
class Overlap:
    """How many words the pairs of a split share, in standard errors above a random arrangement.

    Args:
        n: pairs.
        own: overlap of the pairs as given.
        offset, shifted: the shift of positives with the largest overlap, and that overlap.
        best, anchors: mean cosines of anchors with the best of all positives, and with the best other anchor.
    """

    n: int
    own: float
    offset: int
    shifted: float
    best: float
    anchors: float


def find_overlap(anchors: Sequence[str], positives: Sequence[str]) -> Overlap | None:
    """Return how many words pairs share; None if no positive shares a word with any anchor."""
    n = len(anchors)
    features = tf_idf([*anchors, *positives])
    first, second = features[:n], features[n:]
    cosines = (first @ second.T).toarray()
    centred = cosines - cosines.mean(0) - cosines.mean(1)[:, None] + cosines.mean()
    # The variance of the sum over a random arrangement (Hoeffding 1951, doi:10.1214/aoms/1177729545).
    error = float(np.sqrt((centred**2).sum() / (n - 1)))
    if error < 1e-9:
        return None
    shifts = {k: float(np.diagonal(centred, k).sum()) / error for k in OFFSETS}
    offset = max(shifts, key=lambda k: shifts[k])
    among = (first @ first.T).toarray()
    np.fill_diagonal(among, 0)
    own = float(np.trace(centred)) / error
    return Overlap(n, own, offset, shifts[offset], float(cosines.max(1).mean()), float(among.max(1).mean()))


def _pairs(rows: Any) -> tuple[list[str], list[str]]:
    """Return the texts of the first rows that are anchor and positive, possibly with further columns."""
    pairs = [view.inputs[:2] for view in islice(rows, LOOKED_AT) if _is_pair(view)]
    return [str(anchor) for anchor, _ in pairs], [str(positive) for _, positive in pairs]


def _is_pair(view: View) -> bool:
    """Return whether all texts of a row are inputs, without a target."""
    several = view.target is None and len(view.inputs) > 1 and all(isinstance(text, str) for text in view.inputs)
    return several and view.identity == list(view.inputs)


def _reason(found: Overlap) -> tuple[str, str] | None:
    """Return the evidence that positives are in the wrong rows, as text and key; None without evidence."""
    if found.shifted >= SURE:
        by = f"the positives {counted(abs(found.offset), 'row')} further {'down' if found.offset > 0 else 'up'} do"
        return f"{by} by {number(found.shifted, 1)}", "offset"
    if found.best >= max(SHARED, found.anchors + NEARER):
        text = f"the best of all positives has a cosine of {number(found.best, 2)} with its anchor, the best other "
        return f"{text}anchor of {number(found.anchors, 2)}", "best"
    return None


def _by_other_splits(others: Mapping[str, float]) -> tuple[str, str] | None:
    """Return the same by the split whose pairs share most words."""
    matched = max(others, key=lambda name: others[name], default="")
    if not matched or others[matched] < SURE:
        return None
    return f"{split_name(matched)} pairs do by {number(others[matched], 1)}", "match"


def _ordered(pairs: tuple[list[str], list[str]]) -> str:
    """Return the column that alone is in alphabetical order; "" if there is none."""
    order = [in_order(column) for column in pairs]
    if max(order) < IN_ORDER or min(order) > OTHERWISE:
        return ""
    return ("anchors", "positives")[int(np.argmax(order))]


def in_order(texts: Sequence[str]) -> float:
    """Return the share of differing neighbours that are in alphabetical order; 0 if hardly any differ."""
    pairs = [(a, b) for a, b in pairwise(texts) if a != b]
    if len(pairs) < FEWEST // 2:
        return 0.0
    exact = sum(a < b for a, b in pairs) / len(pairs)
    return max(exact, sum(a.casefold() <= b.casefold() for a, b in pairs) / len(pairs))


def _finding(data: AuditedData, split: str, found: Overlap, why: tuple[str, str] | None, ordered: str) -> Finding:
    """Return an alarm if there is evidence that pairs do not match, else a note."""
    reasons = [why[0]] if why is not None else []
    reasons += [f"the {ordered} alone are in alphabetical order"] if ordered else []
    brief = f"check whether {split_name(split)} positives belong to their anchors: they share no more words with them "
    brief += f"than by chance ({number(found.own, 1)} standard errors); {'; '.join(reasons)}"
    then = f"Was one column of {data.splits[split].source} sorted, shifted or shuffled alone? Join them again by "
    then += "an id."
    return Finding(
        kind="labels",
        level="note" if why is None else "alarm",
        text=f"{capitalized(brief)}. {then}",
        brief=brief,
        explains=EXPLAINED,
        figures={"split": split, "found": None if why is None else why[1], "ordered": ordered, **asdict(found)},
    )
