"""Audit `answer-cues`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import capitalized, percent, quoted
from ftengine_builtins.audits.contradictions import LOOKED_AT
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED, is_nonrandom_split, shortened
from ftengine_builtins.audits.surface import HAS
from ftengine_builtins.audits.word_scores import choose_rows

SAMPLE, FEWEST = 1_000, 20
"""Distinct rows of a split that are looked at, and answers of each side below which nothing is said."""
WORDS, OPENING = 150, 3
"""Words of an answer that are read, and of the longest opening."""
COVERED, ALONE = 0.6, 0.9
"""Share of one side's answers that have a cue, and of the answers that have it how many are of that side (interval's
near end): chosen or not can then be told without reading on."""
WORTH_A_NOTE = 0.8
"""The first of these where held-out answers have the cue as well: then it may be what people want."""
DOES = {"begins": ("begins with", "begin with"), "word": ("has the word", "have the word")}
SIDES = {"chosen": ("chosen", "rejected"), "desirable": ("desirable", "undesirable")}


class Cue(NamedTuple):
    """An opening or word, with its shares among one side's answers and the other's.

    Args:
        feature: ("begins", words), ("word", word), or ("surface", name) of `surface.HAS`.
        having, of: number of the side's answers that have it, and of all its answers.
        others, of_others: the same numbers for the other side.
    """

    feature: tuple[str, str]
    having: int
    of: int
    others: int
    of_others: int

    @property
    def gain(self) -> float:
        """How much more frequent it is among the side's answers than among the others."""
        return self.having / self.of - self.others / self.of_others

    @property
    def most(self) -> float:
        """The gain's upper end, approximately: from the ends of the 95 % intervals of both shares."""
        return share_within(self.having, self.of)[1] - share_within(self.others, self.of_others)[0]


Answers = tuple[Sequence[str], Sequence[str]]
"""The answers that are preferred, and the others."""


class AnswerCues(Audit):
    """Finds an opening, a word or a surface that only the chosen (or only the rejected) answers of training have.

    Surfaces are lower case, line breaks, ends of sentences and the like. An alarm if the answers of a held-out split of
    another source lack it, so that it predicts nothing there.
    """

    name = "answer-cues"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        named = (_named(view) for rows in data.splits.values() for view in islice(rows, LOOKED_AT))
        if (key := next((key for key in named if key), None)) is None:
            return
        answers = {split: _draw(data, split) for split in data.splits}
        answers = {split: sides for split, sides in answers.items() if min(map(len, sides)) >= FEWEST}
        if "train" not in answers:
            return
        held = [split for split in answers if split != "train" and is_nonrandom_split(data, split)][-1:]
        found = []
        for side in (0, 1):
            if (cue := find_cue(answers["train"], side)) is not None:
                there = {split: _count(answers[split], side, [cue.feature])[cue.feature] for split in held}
                change = max(
                    (abs(cue.having / cue.of - opposite.having / opposite.of) for opposite in there.values()),
                    default=0.0,
                )
                found.append((cue.gain, change, -side, cue, there))
        for _, _, side, cue, there in sorted(found, reverse=True)[
            :1
        ]:  # of two sides, the opposite that held-out rows lack
            yield from _findings(cue, SIDES[key][-side], SIDES[key][1 + side], there)


def find_cue(answers: Answers, side: int) -> Cue | None:
    """Return the opening or word that best predicts a side's answers; None if none predicts them alone."""
    counts = _count(answers, side)
    cues = [cue for cue in counts.values() if cue.having >= COVERED * cue.of and _alone(cue) >= ALONE]
    return max(cues, key=lambda cue: (cue.gain, *_says_most(*cue.feature)), default=None)


def _says_most(kind: str, words: str) -> tuple[int, int]:
    """Return a sort key: of features that predict equally well, the largest is reported."""
    if kind == "surface":
        return 0, -next(i for i, feature in enumerate(HAS) if feature.name == words)
    return 1 + (kind == "begins"), len(words)


def _alone(cue: Cue) -> float:
    return share_within(cue.having, cue.having + cue.others)[0] if cue.having else 0.0


def _count(answers: Answers, side: int, wanted: Sequence[tuple[str, str]] = ()) -> Mapping[tuple[str, str], Cue]:
    """Count features in both sides' answers: those of one side's answers, or the given ones."""
    own, others = (
        Counter(feature for text in texts for feature in _features(text))
        for texts in (answers[side], answers[1 - side])
    )
    of, of_others = len(answers[side]), len(answers[1 - side])
    return {feature: Cue(feature, own[feature], of, others[feature], of_others) for feature in wanted or own}


def _features(text: str) -> set[tuple[str, str]]:
    words = text.split(maxsplit=WORDS)[:WORDS]
    openings = {("begins", " ".join(words[:count])) for count in range(1, min(OPENING, len(words)) + 1)}
    surface = {("surface", feature.name) for feature in HAS if feature.measure(shortened(text))}
    return openings | {("word", word.lower()) for word in words} | surface


def _named(view: View) -> str | None:
    """Return the key of `SIDES` for a row's judgement; None if the row compares no answers."""
    keys = view.target.keys() if isinstance(view.target, dict) else set()
    if keys == {"chosen", "rejected"}:
        return "chosen"
    return "desirable" if keys == {"completion", "desirable"} else None


def _draw(data: AuditedData, split: str) -> Answers:
    """Draw the answers of distinct rows."""
    chosen = choose_rows(data.distinct[split], np.ones(len(data.splits[split]), dtype=bool), SAMPLE)
    sides = list[str](), list[str]()
    for i, view in enumerate(islice(data.splits[split], max(chosen, default=-1) + 1)):
        if i not in chosen or (key := _named(view)) is None:
            continue
        pairs = [(0, "chosen"), (1, "rejected")] if key == "chosen" else [(int(not view.target[key]), "completion")]
        for side, name in pairs:
            sides[side].append(_text(view.target[name]))
    return sides


def _text(value: Any) -> str:
    """Return the text of an answer; several messages are joined."""
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(_text, value)))
    return value if isinstance(value, str) else ""


def _findings(cue: Cue, side: str, other: str, there: Mapping[str, Cue]) -> Iterator[Finding]:
    """Yield what predicts a side's answers, and whether it holds in a held-out split."""
    kind, words = cue.feature
    singular, plural = (f"{verb} {quoted(words)}" for verb in DOES.get(kind, ("", "")))
    if kind == "surface":
        singular, plural = next(feature.does for feature in HAS if feature.name == words)
    brief = f"every {side} answer of training {singular}"
    if cue.having < cue.of:
        brief = f"{percent(cue.having / cue.of)} of the {side} answers of training {plural}"
    figures = {"feature": kind, "words": words, "side": side, "having": cue.having, "of": cue.of,
               "others": cue.others, "of_others": cue.of_others}  # fmt: skip
    share = "none" if not cue.others else percent(cue.others / cue.of_others)
    text = f"{brief[:1].upper()}{brief[1:]}, and {share} of the {other} ones"
    for split, held in there.items():
        figures |= {"split": split, "held_out": held.having / held.of, "held_out_others": held.others / held.of_others}
        text += f"; in {split_name(split)} rows {percent(held.having / held.of)} and "
        text += percent(held.others / held.of_others)
        if held.most < cue.gain / 2:
            text += ". A model learns that alone: take it out of the training answers, write both sides alike, or hold "
            text += "out pairs of that kind."
            if held.others >= COVERED * held.of_others:
                brief = (
                    f"check which answers are the chosen ones: {brief}, and {percent(held.others / held.of_others)} of "
                )
                brief += f"the {other} ones in {split_name(split)} rows"
                text = f"{capitalized(brief)}. Exchange the two columns of the wrong file."
                yield Finding(kind="splits", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)
                return
            brief += f", hardly any of {split_name(split)}: the model learns that"
            yield Finding(kind="splits", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)
            return
    if cue.having >= WORTH_A_NOTE * cue.of:
        text += ": a model may learn only that. Compare accuracy with what this cue alone reaches."
        yield Finding(kind="data", level="note", text=text, figures=figures)
