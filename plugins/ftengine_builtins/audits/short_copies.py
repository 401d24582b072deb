"""Audit `short-copies`."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import counted, percent, short_place
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.word_scores import TOKEN

FEWEST_WORDS, MOST_WORDS = 4, 15
"""Words of the texts that are compared: of fewer, one is too much of the text; longer ones are compared as near
duplicates (data.near_duplicates)."""
MOST_ROWS = 200_000
"""Rows of a split that are looked at, the first; 520 bytes are kept of each while they are compared."""
LAST = 2**64 - 1
FEWEST = 20
"""Short rows of a split below which nothing is said."""
EXCESS = 0.1
"""Share of the held-out rows that are near a training row beyond that of training rows which are near another one,
between the near ends of both intervals, for an alarm."""
OFTEN = 0.2
"""Share of the held-out rows near a training row that is said although training rows are as near one another."""


class ShortCopies(Audit):
    """Finds short held-out texts that equal a training row except for one word, more often than training rows do.

    Texts of one form ("turn on the light in the hall") rightly differ in one word; then training rows do so among
    themselves as often. Texts are compared as bags of words, under one label.
    """

    name = "short-copies"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if data.settings["near_duplicates"] is None or len(data.splits) < 2:
            return
        train = _bags(data, "train")
        if len(train.rows) < FEWEST:
            return
        within = train.near(train)
        held_out = list(data.splits)[-1]
        for split in list(data.splits)[1:]:
            held = _bags(data, split, but_in_training=True)
            if len(held.rows) >= FEWEST:
                near = held.near(train)
                if finding := _finding(data, split, held, near, within, measured=split == held_out):
                    yield finding


@dataclass(frozen=True)
class _Bags:
    """Short rows of a split as bags of words.

    Args:
        rows: (rows,) their numbers.
        whole: (rows,) uint64, a hash of each bag: the sum of its words' hashes and its label's.
        parts: (parts,) the same without one word each; `of` is the position in `rows` of each part's.
    """

    rows: np.ndarray
    whole: np.ndarray
    parts: np.ndarray
    of: np.ndarray

    def near(self, others: _Bags) -> np.ndarray:
        """Return (rows,) whether another row has all words but one in common with it."""
        parts = np.sort(others.parts)
        near = _is_in(self.whole, parts)
        known = parts[1:][parts[1:] == parts[:-1]] if others is self else parts  # each row has a part once
        for among in (known, np.sort(others.whole)):
            near[self.of[_is_in(self.parts, among)]] = True
        return near


def _is_in(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return a mask of the values that are among sorted others; `np.isin` needs three times the memory."""
    if not len(among):
        return np.zeros(len(values), bool)
    at = np.searchsorted(among, values)
    at[at == len(among)] = 0
    return among[at] == values


def _bags(data: AuditedData, split: str, *, but_in_training: bool = False) -> _Bags:
    """Return the short rows of a split, each bag once; without those that training has word for word."""
    equal, targets = (data.same_words or data.distinct), data.targets[split].astype(np.uint64)
    once = np.zeros(len(targets), bool)
    once[np.unique(equal[split], return_index=True)[1]] = True
    if but_in_training:
        once &= ~np.isin(equal[split], equal["train"])
    rows, whole, parts, counts = array("q"), array("Q"), array("Q"), array("q")
    for i, text in enumerate(islice(data.splits[split].texts(), MOST_ROWS)):
        words = TOKEN.findall(text.casefold()) if once[i] and len(text) < 40 * MOST_WORDS else ()
        if not FEWEST_WORDS <= len(words) <= MOST_WORDS:
            continue
        hashes = [*map(hash, words)]
        total = sum(hashes) + int(targets[i])
        own = {(total - word) & LAST for word in hashes}
        rows.append(i)
        whole.append(total & LAST)
        parts.extend(own)
        counts.append(len(own))
    of = np.repeat(np.arange(len(rows)), np.array(counts, int))
    return _Bags(np.array(rows, int), np.array(whole, np.uint64), np.array(parts, np.uint64), of)


def _finding(
    data: AuditedData, split: str, held: _Bags, near: np.ndarray, within: np.ndarray, *, measured: bool
) -> Finding | None:
    """Return a finding on a split; None if few of its rows are near a training row."""
    count, total = int(near.sum()), len(near)
    share, usual = count / total, float(within.mean())
    beyond = share_within(count, total)[0] - share_within(int(within.sum()), len(within))[1]
    if beyond < EXCESS and share < OFTEN:
        return None
    places = tuple(data.splits[split].where(int(row)) for row in held.rows[near][:SHOWN_PLACES])
    name = split_name(split)
    figures = {"held_out": share, "within_training": usual, "rows": total, "split": split}
    they = f"{count:,} of {counted(total, f'short {name} text')} differ from a training row in one word at most"
    if beyond < EXCESS:
        text = f"{they}, as do {percent(usual)} of the training rows from one another: texts follow one pattern, and "
        text += "figures say little about texts of another one."
        return Finding(kind="data", level="note", text=text, figures=figures, places=places)
    lead = f"take rewritten copies of training rows out of {split}: {they}"
    text = f"{lead[:1].upper()}{lead[1:]} (e.g. {short_place(places[0])}), where only {percent(usual)} of the training "
    text += f"rows are so near another. Figures on them say {'nothing' if measured else 'little'} about new data."
    explains = ("quality",) if measured else ()
    level = "alarm" if measured else "note"
    return Finding(
        kind="data", level=level, text=text, brief=lead, explains=explains, figures=figures, places=places
    )  # fmt: skip
