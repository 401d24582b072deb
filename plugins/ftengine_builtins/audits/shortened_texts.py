"""Audit `shortened-texts`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, listed, percent, quoted
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.one_answer import any_answer
from ftengine_builtins.audits.split_shift import EXPLAINED, is_nonrandom_split, label_names

FEWEST = 20
"""Distinct texts of both splits, or of a label in both, below which nothing is compared."""
ENDING, LONGER = 0.3, 0.3
"""Share of the one split's texts that are as long as its longest, to a character, and of the other split's that are
longer than these by a quarter (LONGER_BY), at the intervals' near ends, from which the first are cut there."""
LONGER_BY = 1.25
BEFORE, SPIKE = 4, 2
"""Characters before that end, and how many times as many texts as end there do end at it: headlines of a newspaper
have a usual length and a longest, but no such spike."""
SHORT = 0.5
"""Median length by that of the same label in the other split, up to which a label's texts are shortened without a
common end, if nine in ten are shorter than nine in ten there."""
ALIKE = 1.5
"""How many times as long as the other's the texts of other labels are in one split, at most, for that to be no matter
of the whole split."""
SHOWN = 3
IN_WORD = 0.5
"""Share of the answers at the common end that stop at a letter, from which they are cut: whoever keeps to a limit ends
a sentence."""
POSTS, MOST_POSTS = (140, 280), 0.5
"""Characters that a post could have, and the share of texts with so many up to which people may have kept to it."""


class ShortenedTexts(Audit):
    """Finds texts of a split, or of one label, that are cut at one length or far shorter than in another split.

    Looks at splits that are no random part of the training source, at rows with a label or a number, and at free
    answers. A note if all held-out texts have one length, as windows of longer texts do, or if the length is a usual
    limit of posts.
    """

    name = "shortened-texts"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        held = [split for split in data.splits if split != "train" and is_nonrandom_split(data, split)]
        if not held:
            return
        measure = _lengths if data.targets["train"].any() else _lengths_of_answers
        train = measure(data, "train")
        for split in reversed(held):  # figures are made on the last
            rows = measure(data, split)
            for side, other in ((train, rows), (rows, train)):
                if side.in_word and (found := _find(side, other, _characters_read(data, side.split, side))):
                    yield _finding(data, side, other, found)
                    return


@dataclass(frozen=True)
class _Lengths:
    """Lengths in characters of a split's distinct texts, or answers.

    Args:
        lengths, targets, rows: (texts,) each, the numbers of its label and of its row; answers have label 0.
        what: "texts" or "answers".
        in_word: whether most of the longest answers stop at a letter.
    """

    split: str
    lengths: np.ndarray
    targets: np.ndarray
    rows: np.ndarray
    what: str = "texts"
    in_word: bool = True

    def of(self, label: int) -> np.ndarray:
        return self.lengths[self.targets == label] if label else self.lengths


@dataclass(frozen=True)
class _Shortened:
    """The shortened texts of a label, of all labels if `label` is 0; `end` is None without a common length."""

    label: int
    end: int | None
    share: float
    median: float
    other: float

    def is_meant(self, split: str) -> bool:
        """Return whether a length is probably intended: held-out windows, and posts up to a usual limit."""
        windows = split != "train" and not self.label and self.share == 1
        return self.end is not None and (windows or (self.end in POSTS and self.share < MOST_POSTS))


def _lengths(data: AuditedData, split: str) -> _Lengths:
    lengths = np.array([len(text.strip()) for text in data.splits[split].texts()], dtype=np.int64)
    rows = np.unique(data.distinct[split], return_index=True)[1]
    rows = np.sort(rows[(lengths[rows] > 0) & (data.targets[split][rows] != 0)])
    return _Lengths(split, lengths[rows], data.targets[split][rows], rows)


def _lengths_of_answers(data: AuditedData, split: str) -> _Lengths:
    """Return lengths of distinct free answers, of several turns the last."""
    found: dict[str, int] = {}
    for i, view in enumerate(data.splits[split]):
        answer = any_answer(view)
        answer = answer[-1] if isinstance(answer, list) and answer else answer
        if isinstance(answer, str) and (text := answer.strip()):
            found.setdefault(text, i)
    lengths = np.array([len(text) for text in found], dtype=np.int64)
    longest = [text[-1].isalpha() for text in found if len(text) >= lengths.max() - 1]
    in_word = sum(longest) > IN_WORD * len(longest)
    rows, labels = np.array([*found.values()], dtype=np.int64), np.zeros(len(found), dtype=np.int64)
    return _Lengths(split, lengths, labels, rows, "answers", in_word)


def _characters_read(data: AuditedData, split: str, rows: _Lengths) -> float:
    """Return about how many characters of a text the model reads; infinity for answers and uncut texts."""
    encoded: Any = data.encoded.get(split, {})
    if (
        rows.what == "answers"
        or not encoded.get("truncated")
        or not encoded.get("untruncated")
        or not len(rows.lengths)
    ):
        return float("inf")
    return encoded["longest"] * float(np.median(rows.lengths)) / max(1, encoded["untruncated"]["50"])


def _find(side: _Lengths, other: _Lengths, read: float) -> list[_Shortened]:
    """Return what is shortened in one split: all texts, or those of some labels, the most frequent first."""
    if (whole := _cut(side, other, 0)) is not None:
        return [whole] if (whole.end or 0) < read else []
    labels, counts = np.unique(side.targets, return_counts=True)
    labels = labels[np.argsort(-counts, kind="stable")][: np.count_nonzero(counts >= FEWEST)]
    found = [_cut(side, other, int(label)) or _far_shorter(side, other, int(label)) for label in labels]
    return [label for label in found if label is not None and max(label.end or 0, label.median) < read]


def _cut(side: _Lengths, other: _Lengths, label: int) -> _Shortened | None:
    here, there = side.of(label), other.of(label)
    if min(len(here), len(there)) < FEWEST:
        return None
    end = int(here.max())
    ending, longer = int((here >= end - 1).sum()), int((there > LONGER_BY * end).sum())
    if ending < SPIKE * ((here >= end - 1 - BEFORE) & (here < end - 1)).sum():
        return None
    if share_within(ending, len(here))[0] < ENDING or share_within(longer, len(there))[0] < LONGER:
        return None
    return _Shortened(label, end, ending / len(here), float(np.median(here)), float(np.median(there)))


def _far_shorter(lengths: _Lengths, other: _Lengths, label: int) -> _Shortened | None:
    here, there = lengths.of(label), other.of(label)
    rest = [side.lengths[side.targets != label] for side in (lengths, other)]
    if min(map(len, (here, there, *rest))) < FEWEST:
        return None
    short, long = float(np.median(here)), float(np.median(there))
    others = float(np.median(rest[0])) / float(np.median(rest[1]))
    if short > SHORT * long or not 1 / ALIKE <= others <= ALIKE:
        return None
    if np.quantile(here, 0.9) >= np.quantile(there, 0.1):
        return None
    return _Shortened(label, None, float((here < there.min()).mean()), short, long)


def _finding(data: AuditedData, side: _Lengths, other: _Lengths, found: list[_Shortened]) -> Finding:
    names = label_names(data, {label.label for label in found})
    here, there = split_name(side.split), split_name(other.split)
    parts = []
    for cut in found[:SHOWN]:
        labelled = f" labelled {quoted(names.get(cut.label, ''))}" if cut.label else ""
        what = f"have {cut.median:,.0f} characters"
        if cut.end is not None:
            what = f"are cut at {cut.end:,} characters ({percent(cut.share)} of them)"
        parts.append(f"{here} {side.what}{labelled} {what}, in {there} they have {cut.other:,.0f}")
    lead = f"export {side.what} again: {listed(parts)}"
    first = found[0]
    at = side.rows[(side.targets == first.label) if first.label else np.ones(len(side.rows), dtype=bool)]
    figures = {
        "split": side.split,
        "other": other.split,
        "shortened": [{"label": names.get(x.label), "end": x.end, "share": x.share, "median": x.median,
                       "other": x.other} for x in found],
    }  # fmt: skip
    places = tuple(data.splits[side.split].where(int(row)) for row in at[:SHOWN_PLACES])
    if side.what == "texts" and all(cut.is_meant(side.split) for cut in found):
        text = f"Check whether texts are of one kind: {listed(parts)} (median)."
        return Finding(kind="data", level="note", text=text, figures=figures, places=places)
    text = f"{capitalized(lead)} (median). The model may learn the length, or miss what was cut off."
    return Finding(
        kind="data", level="alarm", text=text, brief=lead, explains=EXPLAINED, figures=figures, places=places
    )  # fmt: skip
