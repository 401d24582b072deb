"""Audit `telling-phrases`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from itertools import pairwise

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, listed, percent, quoted
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.cues import Texts
from ftengine_builtins.audits.split_shift import FEWEST, draw, label_names
from ftengine_builtins.audits.word_scores import TOKEN

SAMPLE = 1_000
"""Distinct rows of a split that are looked at."""
OWN, OTHERS = 0.95, 0.03
"""Share of a label's rows that a phrase is in at least, and of all other rows at most, for it to tell the label."""
OF_LABEL, MOST_LABELS = 5, 50
"""Rows of a label in the sample, at least, and labels that are looked at."""
SHOWN = 3


class TellingPhrases(Audit):
    """Finds one word or two that predict each label alone, in training and in held-out rows alike.

    Such words may be the reason for the label, or may have been written because of it.
    """

    name = "telling-phrases"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        split = list(data.splits)[-1]
        if split == "train" or not data.targets["train"].any():
            return
        train, held = draw(data, "train", SAMPLE), draw(data, split, SAMPLE)
        if min(len(train.texts), len(held.texts)) < FEWEST:
            return
        labels, learnt = {*train.labels, *held.labels}, _phrases(train)
        if len(learnt) < len(labels) - 1:
            return
        there = [_having(rows, set(learnt.values())) for rows in (train, held)]
        kept = dict[int, tuple[str, list[tuple[float, float]]]]()
        for label, words in learnt.items():
            shares = [_shares(rows, label, having[words]) for rows, having in zip((train, held), there, strict=True)]
            if all(own >= OWN and others <= OTHERS for own, others in shares):
                kept[label] = (words, shares)
        if not kept or len(kept) < len(labels) - 1:
            return
        names = label_names(data, set(kept))
        shown = [f"{quoted(words)} ({percent(min(own for own, _ in shares))} of {quoted(names[label])})"
                 for label, (words, shares) in list(kept.items())[:SHOWN]]  # fmt: skip
        more = [f"{len(kept) - SHOWN:,} more"] if len(kept) > SHOWN else []
        lead = f"one phrase tells each label, {listed([*shown, *more])}, and is in hardly any other row of training or "
        lead += split_name(split)
        figures = {"split": split, "phrases": {names[label]: words for label, (words, _) in kept.items()}}
        text = f"{capitalized(lead)}. Check that it is known at prediction time, and not written after the label."
        yield Finding(kind="data", level="note", text=text, brief=lead, figures=figures)


def _phrases(rows: Texts) -> dict[int, str]:
    """Return for each label the phrase that most of its rows, and few others, have; none with too many labels."""
    total = Counter(rows.labels)
    if not 2 <= len(total) <= MOST_LABELS or min(total.values()) < OF_LABEL or 0 in total:
        return {}
    found: dict[str, Counter[int]] = {}
    for text, label in zip(rows.texts, rows.labels, strict=True):
        for phrase in _phrases_of(text):
            found.setdefault(phrase, Counter())[label] += 1
    best: dict[int, tuple[float, str]] = {}
    for phrase, counts in found.items():
        label, count = counts.most_common(1)[0]
        if count >= OWN * total[label]:
            score = count / total[label] - (counts.total() - count) / (len(rows.labels) - total[label])
            best[label] = max(best.get(label, (0.0, "")), (score, phrase))
    return {label: phrase for label, (_, phrase) in sorted(best.items())}


def _phrases_of(text: str) -> set[str]:
    words = TOKEN.findall(text.lower())
    return {*words, *(f"{word} {following}" for word, following in pairwise(words))}


def _having(rows: Texts, phrases: Set[str]) -> dict[str, list[bool]]:
    """Return for each phrase which rows have it."""
    found = [phrases & _phrases_of(text) for text in rows.texts]
    return {phrase: [phrase in there for there in found] for phrase in phrases}


def _shares(rows: Texts, label: int, having: Sequence[bool]) -> tuple[float, float]:
    """Return the share of a label's rows that have a phrase, and that of all other rows."""
    there, own = np.array(having), np.array(rows.labels) == label
    share, other = (float(there[side].mean()) if side.any() else 0.0 for side in (own, ~own))
    return share, other
