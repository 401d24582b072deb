"""Audit `short-copies`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import counted, percent, short_place
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name

FEWEST_WORDS, MOST_WORDS = 4, 15
"""Words of the texts that are compared: of fewer, one is too much of the text; longer ones are compared as near
duplicates (data.near_duplicates)."""
MOST_ROWS = 200_000
"""Rows of a split that are looked at, the first; 130 bytes are kept of each."""
FEWEST = 20
"""Short rows of a split below which nothing is said."""
EXCESS = 0.1
"""Share of the held-out rows that are near a training row beyond that of training rows which are near another one,
between the near ends of both intervals, for an alarm."""
OFTEN = 0.2
"""Share of the held-out rows near a training row that is said although training rows are as near one another."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class ShortCopies(Audit):
    """Held-out texts of a few words that are a training row's but for one word, beyond what is so within training.

    Texts of one form ("turn on the light in the hall") honestly differ in one word; but then training rows do so among
    themselves as often as held-out rows do from training rows. Texts are compared as bags of words, under one label.
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
        """Return (rows,) whether one of the others, not the row itself, has all words but one in common with it."""
        parts, counts = np.unique(others.parts, return_counts=True)
        known = parts[counts > 1] if others is self else parts  # each row has a part once
        near = np.isin(self.whole, parts)
        near[self.of[np.isin(self.parts, known) | np.isin(self.parts, others.whole)]] = True
        return near


def _bags(data: AuditedData, split: str, *, but_in_training: bool = False) -> _Bags:
    """Return the short rows of a split, each bag once; without those that training has word for word."""
    equal, targets = (data.same_words or data.distinct), data.targets[split].astype(np.uint64)
    known = set(equal["train"].tolist()) if but_in_training else set[int]()
    rows, whole, parts, of = [], list[int](), list[int](), list[int]()
    for i, text in enumerate(data.splits[split].texts()):
        if i >= MOST_ROWS:
            break
        number = int(equal[split][i])
        words = _WORD.findall(text.casefold()) if len(text) < 40 * MOST_WORDS else []
        if number in known or not FEWEST_WORDS <= len(words) <= MOST_WORDS:
            continue
        known.add(number)
        total = (sum(map(_hash, words)) + int(targets[i])) % 2**64
        own = {(total - _hash(word)) % 2**64 for word in set(words)}
        of += [len(rows)] * len(own)
        parts += own
        rows.append(i)
        whole.append(total)
    return _Bags(np.array(rows, int), *(np.array(x, np.uint64) for x in (whole, parts)), np.array(of, int))


@lru_cache(1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _finding(
    data: AuditedData, split: str, held: _Bags, near: np.ndarray, within: np.ndarray, *, measured: bool
) -> Finding | None:
    """Return what to say of a split; None where few of its rows are near a training row."""
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
        text = f"{they}, as do {percent(usual)} of the training rows from one another: texts are of one form, and "
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
