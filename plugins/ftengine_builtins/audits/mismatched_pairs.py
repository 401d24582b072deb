"""Audit `mismatched-pairs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, counted, number
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.row_parts import last_prompt, parts_of, shared_words
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
POSITIVES, CHOSEN, REJECTED = "positives", "answers", "rejected answers"
KINDS = {POSITIVES: "anchors", CHOSEN: "prompts", REJECTED: "prompts"}
"""Texts that belong to others of their row."""
MANTEL, ARRANGED, FAR = 500, 100, 10.0
"""Pairs whose similarity is compared, the first, random arrangements, and their standard deviations from which a shift
surely fits: of few topics, sums over arrangements are far from normal."""
CHARACTERS = 2_000
BETTER = 3.0
"""How many times as well as the pairs as given a shift fits, where rows stand in an order and neighbours are alike."""
FOLLOWING = 0.2
"""Share of the rows that have the row before in their first text, from which rows are turns of conversations."""
COPIED = 0.9
"""Share of the words of a split's typical anchor that its positive has, from which it shows nothing of other splits."""
IN_ORDER, OTHERWISE = 0.98, 0.8
"""Share of neighbours that stand in alphabetical order in a sorted column, and at most in one that is not."""
EXPLAINED = ("quality", "learning", "rows", "over-fitting", "worse", "splits", "data")


class MismatchedPairs(Audit):
    """Finds positives, or answers, that do not belong to their rows: shifted by some rows, sorted, or shuffled.

    Looks at anchors with their positives, and at prompts with their answers, chosen and rejected ones. Pairs of such a
    split share no more words than a random arrangement does, and rows with similar prompts have no more similar
    answers. An alarm if another arrangement fits: answers of rows further up or down, those of a held-out split, or the
    best match of each anchor. A note if only one of the columns is in alphabetical order, as it may have been sorted
    alone, or if rejected answers fit no prompt and chosen ones do. Pairs in two languages, which share no words, are
    judged by their similarity alone.
    """

    name = "mismatched-pairs"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        by_split = {split: _pairs(rows) for split, rows in data.splits.items()}
        for kind in KINDS:
            pairs = {split: of[kind] for split, of in by_split.items() if len(of[kind][0]) >= FEWEST}
            overlaps = {split: find_overlap(*of) for split, of in pairs.items()}
            for split, found in overlaps.items():
                if found is None or (found.fit > CHANCE and not found.slipped) or follow_one_another(*pairs[split]):
                    continue
                fits = {name: of for name, of in overlaps.items() if of is not None and name != split}
                why = _reason(found, kind) or _by_other_splits(found, fits, pairs)
                ordered = _ordered(pairs[split]) if kind == POSITIVES else ""
                if kind == CHOSEN and why is not None and why[1] == "match" and _fits(by_split[split][REJECTED]):
                    continue  # both are exchanged, which audit `exchanged-roles` finds
                if why is None and kind == REJECTED and _fits(by_split[split][CHOSEN]):
                    ordered = REJECTED
                if why is not None or ordered:
                    yield _finding(data, split, kind, found, why, ordered)
            if any(of is not None and of.fit <= CHANCE for of in overlaps.values()) and kind == CHOSEN:
                return  # rejected answers are then no better


@dataclass(frozen=True)
class Overlap:
    """How well the pairs of a split fit, in standard errors above a random arrangement.

    Args:
        n: pairs.
        own: words shared by the pairs as given.
        alike: similarity of the seconds of similar firsts, as given.
        offset, shifted: the shift of positives with the largest overlap, and that overlap.
        best, anchors: mean cosines of anchors with the best of all positives, and with the best other anchor.
        alike_offset, alike_shifted: as `offset` and `shifted`, by similarity.
    """

    n: int
    own: float
    offset: int
    shifted: float
    best: float
    anchors: float
    alike: float = 0.0
    alike_offset: int = 0
    alike_shifted: float = 0.0

    @property
    def fit(self) -> float:
        """The larger of the two by which pairs fit as given."""
        return max(self.own, self.alike)

    @property
    def slipped(self) -> bool:
        """Whether a shift fits far better than the pairs as given, though neighbours may be alike too."""
        by_words = self.shifted >= max(SURE, BETTER * self.own) and self.alike_shifted >= self.alike
        by_likeness = self.alike_shifted >= max(FAR, BETTER * self.alike) and self.shifted >= self.own
        return by_words or by_likeness


def find_overlap(anchors: Sequence[str], positives: Sequence[str]) -> Overlap | None:
    """Return how well pairs fit; None if words show nothing of it."""
    n = len(anchors)
    features = tf_idf([*anchors, *positives])
    first, second = features[:n], features[n:]
    cosines = (first @ second.T).toarray()
    centred = cosines - cosines.mean(0) - cosines.mean(1)[:, None] + cosines.mean()
    # The variance of the sum over a random arrangement (Hoeffding 1951, doi:10.1214/aoms/1177729545).
    error = float(np.sqrt((centred**2).sum() / (n - 1)))
    alike = _likeness(first[:MANTEL], second[:MANTEL])
    if error < 1e-9 and not any(alike.values()):
        return None
    shifts = {k: float(np.diagonal(centred, k).sum()) / max(error, 1e-9) for k in OFFSETS}
    offset, alike_offset = (max(OFFSETS, key=lambda k, of=of: of[k]) for of in (shifts, alike))
    among = (first @ first.T).toarray()
    np.fill_diagonal(among, 0)
    own = float(np.trace(centred)) / max(error, 1e-9)
    return Overlap(n, own, offset, shifts[offset], float(cosines.max(1).mean()), float(among.max(1).mean()),
                   alike[0], alike_offset, alike[alike_offset])  # fmt: skip


def _likeness(first: Any, second: Any) -> dict[int, float]:
    """Return for each shift of the seconds how much more alike those of similar firsts are than at random.

    By Mantel's test (1967), in standard deviations of random arrangements; 0 where texts are all alike or not at all.
    Words are not compared across the two sides, so that these may be in two languages.
    """
    sides = [(of @ of.T).toarray() for of in (first, second)]
    for of in sides:
        np.fill_diagonal(of, 0.0)
        of -= of.sum() / max(1, len(of) * (len(of) - 1))
        np.fill_diagonal(of, 0.0)
    one, other = sides
    n, rng = len(one), np.random.default_rng(0)
    drawn = [
        float((one * other[np.ix_(order, order)]).sum()) for order in (rng.permutation(n) for _ in range(ARRANGED))
    ]
    middle, spread = float(np.mean(drawn)), float(np.std(drawn))
    if spread < 1e-9:
        return dict.fromkeys((0, *OFFSETS), 0.0)
    orders = {k: np.roll(np.arange(n), -k) for k in (0, *OFFSETS)}
    return {k: (float((one * other[np.ix_(order, order)]).sum()) - middle) / spread for k, order in orders.items()}


def _pairs(rows: Any) -> dict[str, tuple[list[str], list[str]]]:
    """Return the texts of the first rows by what belongs together: anchors and positives, prompts and answers."""
    pairs: dict[str, tuple[list[str], list[str]]] = {kind: ([], []) for kind in KINDS}
    for view in islice(rows, LOOKED_AT):
        parts = parts_of(view)
        for kind, first in KINDS.items():
            if first in parts and kind in parts:
                text = parts[first] if kind == POSITIVES else last_prompt(view, parts[first])
                pairs[kind][0].append(text[:CHARACTERS])
                pairs[kind][1].append(parts[kind][:CHARACTERS])
    return pairs


def follow_one_another(firsts: Sequence[str], seconds: Sequence[str]) -> bool:
    """Return whether rows are the turns of a conversation, which go on from the row before: then neighbours fit too."""
    on = [last in text for last, text in pairwise(firsts)]
    on = [with_last or seconds[i].strip() == firsts[i + 1].strip() for i, with_last in enumerate(on)]
    return sum(on) >= FOLLOWING * len(on)


def _fits(pairs: tuple[list[str], list[str]]) -> bool:
    return len(pairs[0]) >= FEWEST and (found := find_overlap(*pairs)) is not None and found.fit >= SURE


def _reason(found: Overlap, kind: str) -> tuple[str, str] | None:
    """Return the evidence that positives are in the wrong rows, as text and key; None without evidence."""
    for offset, shifted, sure in ((found.offset, found.shifted, SURE), (found.alike_offset, found.alike_shifted, FAR)):
        if shifted >= sure:
            by = f"the {kind} {counted(abs(offset), 'row')} further {'down' if offset > 0 else 'up'} do"
            return f"{by} by {number(shifted, 1)}", "offset"
    if kind == POSITIVES and found.best >= max(SHARED, found.anchors + NEARER):
        text = f"the best of all positives has a cosine of {number(found.best, 2)} with its anchor, the best other "
        return f"{text}anchor of {number(found.anchors, 2)}", "best"
    return None


def _by_other_splits(
    found: Overlap, others: Mapping[str, Overlap], pairs: Mapping[str, tuple[list[str], list[str]]]
) -> tuple[str, str] | None:
    """Return the same by the split whose pairs fit best, of which as many do surely as are in the first.

    Not where these repeat words, as no pair has to.
    """
    matched = max(others, key=lambda name: others[name].fit, default="")
    if (
        not matched
        or others[matched].fit * min(1.0, found.n / others[matched].n) < SURE
        or _copied(*pairs[matched]) >= COPIED
    ):
        return None
    return f"{split_name(matched)} pairs do by {number(others[matched].fit, 1)}", "match"


def _copied(firsts: Sequence[str], seconds: Sequence[str]) -> float:
    """Return the share of the words of typical firsts that their seconds have."""
    return float(np.median([shared_words(*pair) for pair in zip(firsts, seconds, strict=True)]))


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


def _finding(
    data: AuditedData, split: str, kind: str, found: Overlap, why: tuple[str, str] | None, ordered: str
) -> Finding:
    """Return an alarm if there is evidence that pairs do not match, else a note."""
    reasons = [why[0]] if why is not None else []
    if ordered == REJECTED:
        reasons += ["chosen ones do"]
    elif ordered:
        reasons += [f"the {ordered} alone are in alphabetical order"]
    brief = f"check whether {split_name(split)} {kind} belong to their {KINDS[kind]}: they fit them no better than by "
    brief += f"chance ({number(found.fit, 1)} standard errors); {'; '.join(reasons)}"
    if found.fit > CHANCE:
        brief = brief.replace(" no better than by chance (", " by ").replace(" standard errors); ", ", ")
    then = f"Was one column of {data.splits[split].source} sorted, shifted or shuffled alone? Join them again by "
    then += "an id."
    if ordered == REJECTED:
        then = f"If they are answers to other prompts, the pairs of {data.splits[split].source} teach what a prompt is "
        then += "about, and not which of two answers to it is better."
    return Finding(
        kind="labels",
        level="note" if why is None else "alarm",
        text=f"{capitalized(brief)}. {then}",
        brief=brief,
        explains=() if ordered == REJECTED else EXPLAINED,
        figures={"split": split, "what": kind, "found": None if why is None else why[1], "ordered": ordered,
                 **asdict(found)},
    )  # fmt: skip
