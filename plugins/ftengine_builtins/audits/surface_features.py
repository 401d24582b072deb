"""Audit `surface-features`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, number, percent
from ftengine_builtins.audits.contradictions import tags_words
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.row_parts import (
    COMPARED,
    PROMPTS,
    RELATED,
    SYSTEMS,
    affixes,
    number_of_turns,
    parts_of,
    relations,
)
from ftengine_builtins.audits.split_shift import (
    EXPLAINED,
    area_error,
    areas,
    find_shift,
    is_nonrandom_split,
    shortened,
)
from ftengine_builtins.audits.surface import (
    AMOUNTS,
    HAS,
    NUMBER_OF_WORDS,
    Feature,
    described,
    longer_words,
    short_frequent_words,
)
from ftengine_builtins.audits.word_scores import choose_rows

SAMPLE, FEWEST = 500, 20
"""Distinct rows of a split that are looked at, and texts of both splits below which nothing is compared."""
ALL_OR_NONE, APART, FAR = 0.6, 0.65, 0.8
"""ROC AUC, near end of an interval that holds for all features at once, from which splits differ by what all texts of
one have or lack, by what more of them have, and by an amount. Random divisions of BBC headlines and of small talk came
to 0.56; articles of other topics to 0.64 by what they have and to 0.77 by an amount."""


WHATEVER_TOPIC = 0.95
"""The same for a number of words that no difference of topics explains."""
MANY, FEW, TRIED = 0.6, 0.1, 40
"""Shares of the texts of both sides from which they are composed in two ways, and the number of features that this is
looked for in."""
TURNS = Feature("number of turns", None, float)
HAS_SYSTEM = Feature("system message", ("comes with a system message", "come with a system message"), float)


class SurfaceFeatures(Audit):
    """Finds differences in how training texts are written: capitals, punctuation, line breaks, speakers, tags.

    Compares some twenty features of texts, prompts and answers, and the number of labels or tagged words of a row,
    between training and splits of another source. If longer words separate the splits too, topics differ, which audit
    `split-shift` reports. An alarm if nearly all texts of one split alone begin or end with the same words, have a
    system message, or stand word for word in another text of their row.
    """

    name = "surface-features"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        held = [split for split in data.splits if split != "train" and is_nonrandom_split(data, split)]
        usual = _usual_tag(data) if held else ""
        train = _draw(data, "train", usual) if held else _Drawn()
        for split in reversed(held):  # figures are made on the last
            yield from islice(_findings(split, train, _draw(data, split, usual), tagged=bool(usual)), 1)


@dataclass(frozen=True)
class _Drawn:
    """Sampled rows of a split: texts by kind, related ones, and the numbers of labels or tagged words, and of turns."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    labels: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Gap:
    """A feature by which two splits differ.

    Args:
        low: near end of the ROC AUC's interval, whichever side has more; 0.5 is chance.
        is_constant: whether all texts of a split have it, or none has.
        train, held: share of texts that have it, or the median amount.
    """

    feature: Feature
    low: float
    is_constant: bool
    train: float
    held: float


def _usual_tag(data: AuditedData) -> str:
    """Return the most frequent tag, which marks ordinary words; "" if words are not tagged."""
    if not tags_words(data):
        return ""
    labels = (view.label for view in islice(data.splits["train"], SAMPLE))
    tags = Counter(str(tag) for label in labels if isinstance(label, (list, tuple)) for tag in label)
    return tags.most_common(1)[0][0] if tags else ""


def _draw(data: AuditedData, split: str, usual: str) -> _Drawn:
    """Sample distinct rows; rows without labels or tagged words have no number."""
    chosen = choose_rows(data.distinct[split], np.ones(len(data.distinct[split]), dtype=bool), SAMPLE)
    drawn = _Drawn()
    for i, view in enumerate(islice(data.splits[split], max(chosen, default=-1) + 1)):
        if i not in chosen:
            continue
        parts = parts_of(view)
        for what, text in parts.items():
            drawn.texts.setdefault(what, []).append(type(text)(shortened(text.strip())))
        for pair in (*RELATED, *COMPARED):
            if all(what in parts for what in pair):
                drawn.pairs.setdefault(pair, []).append((parts[pair[0]], parts[pair[1]]))
        if turns := number_of_turns(view):
            drawn.turns.append(float(turns))
        labels = view.label if isinstance(view.label, (list, tuple)) else ()
        if count := sum(str(label) != usual for label in labels):
            drawn.labels.append(float(count))
    return drawn


def _findings(split: str, train: _Drawn, held: _Drawn, *, tagged: bool) -> Iterator[Finding]:
    what = "tagged words" if tagged else "labels"
    if min(len(train.labels), len(held.labels)) >= FEWEST:
        gap = compared(Feature(what, None, lambda text: 0.0), train.labels, held.labels, 1)
        if gap is not None and (gap.is_constant or tagged):
            lead = "check whether rows were labelled in full: "
            sides = zip((f"{split_name(split)} rows", "training rows"), (held.labels, train.labels), strict=True)
            lead += ", ".join(f"{name} have {number(float(np.mean(side)), 2)} {what} each" for name, side in sides)
            then = "A missing label is learnt, or measured, as one that does not apply."
            yield _finding(split, lead, then, [gap], what, "alarm" if gap.is_constant else "note")
    yield from _of_composition(split, train, held)
    for what in train.texts:
        sides = train.texts[what], held.texts.get(what, [])
        if gaps := _gaps(*sides):
            lead = (
                f"check how {split_name(split)} and training rows were written: {_described(what, split, gaps, sides)}"
            )
            then = "Bring both to one form, that of the texts that the model will get."
            finding = _finding(split, lead, then, gaps, what, "note")
            if gaps[0].feature.name == NUMBER_OF_WORDS and gaps[0].low >= WHATEVER_TOPIC:
                finding = finding.model_copy(update={"figures": {**finding.figures, "composition": False}})
            yield finding


def _of_composition(split: str, train: _Drawn, held: _Drawn) -> Iterator[Finding]:
    """Find what the rows of one split are made of and those of the other are not, whatever their topics are.

    Words with which nearly all texts begin or end, system messages, and texts that repeat others of their rows.
    """
    found = list[tuple[Gap, str, bool]]()
    for pair, rows in train.pairs.items():
        for feature in relations(*pair):
            systematic = feature.does is not None and pair not in COMPARED
            found += _gap_of(feature, (rows, held.pairs.get(pair, [])), pair[0], systematic=systematic)
    found += _gap_of(TURNS, (train.turns, held.turns), "conversations", systematic=False)
    if SYSTEMS in train.texts or SYSTEMS in held.texts:
        sides = [[float(i < len(of.texts.get(SYSTEMS, ()))) for i in range(len(of.texts.get(PROMPTS, ())))]
                 for of in (train, held)]  # fmt: skip
        found += _gap_of(HAS_SYSTEM, sides, PROMPTS, systematic=True)
    for what, texts in train.texts.items():
        for feature in (HAS[0], *affixes(texts, held.texts.get(what, []))):
            found += _gap_of(feature, (texts, held.texts.get(what, [])), what, systematic=True)
    found.sort(key=lambda of: not of[2])
    for gap, what, systematic in found[:1]:
        more = [other for other, same, also in found[1:] if (same, also) == (what, systematic)][:1]
        gaps = [gap, *more]
        lead = f"make {split_name(split)} and training rows alike: {_described(what, split, gaps, ((), ()))}"
        then = "A model learns what it is trained on: it gets other texts than those in the one file, and has to give "
        then += "others."
        finding = _finding(split, lead, then, gaps, what, "alarm" if systematic else "note")
        yield finding.model_copy(update={"figures": {**finding.figures, "composition": systematic}})


def _gap_of(
    feature: Feature, sides: Sequence[Sequence[Any]], what: str, *, systematic: bool
) -> list[tuple[Gap, str, bool]]:
    if min(map(len, sides)) < FEWEST:
        return []
    train, held = ([feature.measure(row) for row in side] for side in sides)
    gap = compared(feature, train, held, TRIED)
    if gap is None:
        return []
    shares = sorted((gap.train, gap.held))
    sure = shares[0] <= FEW < MANY <= shares[1]
    return [(gap, what, systematic and sure)] if sure or not systematic else []


def _gaps(train: Sequence[str], held: Sequence[str]) -> list[Gap]:
    """Return the features in which texts differ most; none if longer words differ as well."""
    if min(len(train), len(held)) < FEWEST:
        return []
    features = (*HAS, short_frequent_words(train, held), *AMOUNTS)
    found = [
        gap for feature in features
        if (gap := compared(feature, *([feature.measure(text) for text in side] for side in (train, held)),
                             len(features))) is not None
    ]  # fmt: skip
    longer = [[longer_words(text) for text in side] for side in (train, held)]
    have_topics = all(sum(map(bool, side)) * 2 >= len(side) for side in longer)  # not if letters are spaced out
    if found and have_topics and find_shift(*longer) is not None:
        found = [gap for gap in found if gap.feature.name == NUMBER_OF_WORDS and gap.low >= WHATEVER_TOPIC]
    if not found:
        return []
    first = max(found, key=lambda gap: (gap.feature.does is not None, gap.low))  # of equals the first in the table
    more = [gap for gap in found if gap.feature.does is None and gap is not first]
    return [first, *more[:1]]


def compared(feature: Feature, train: Sequence[float], held: Sequence[float], tried: int) -> Gap | None:
    """Return by how much two splits differ in a feature; None if it is little, or may be chance.

    Args:
        tried: features, for which the interval holds at once (Bonferroni).
    """
    from scipy.stats import norm

    values, sides = np.array([*train, *held]), np.repeat([0.0, 1.0], [len(train), len(held)])
    auc = float(areas(values[:, None], sides[:, None])[0])
    auc = max(auc, 1 - auc)
    low = auc - float(norm.isf(0.025 / tried)) * area_error(auc, len(train), len(held))
    constant = any(np.ptp(side) == 0 for side in (train, held))
    if low < (ALL_OR_NONE if constant else APART if feature.does else FAR):
        return None
    middle = np.mean if feature.does else np.median
    return Gap(feature, low, constant, float(middle(train)), float(middle(held)))


def are_words_of_one_length(train: Sequence[str], held: Sequence[str]) -> bool:
    """Return whether the words of two splits' texts have about the same length: not where letters are spaced out."""
    return compared(AMOUNTS[-1], *([AMOUNTS[-1].measure(text) for text in side] for side in (train, held)), 1) is None


def _described(what: str, split: str, gaps: Sequence[Gap], sides: tuple[Sequence[str], Sequence[str]]) -> str:
    parts, name = [], split_name(split)
    for gap in gaps:
        if gap.feature.does:
            does = described(gap.feature, [*sides[0], *sides[1]], several=True)
            parts.append(f"{percent(gap.train)} of training {what} and {percent(gap.held)} of {name} {what} {does}")
        else:
            shown = percent if gap.feature.is_share else number
            parts.append(f"the {gap.feature.name} is {shown(gap.train)} in training {what} and {shown(gap.held)} in "
                         f"{name} {what} (median)")  # fmt: skip
    return "; ".join(parts)


def _finding(split: str, lead: str, then: str, gaps: Sequence[Gap], what: str, level: Any) -> Finding:
    figures = {"split": split, "what": what, "features": [
        {"name": gap.feature.name, "training": gap.train, "held_out": gap.held, "low": gap.low} for gap in gaps
    ]}  # fmt: skip
    text = f"{capitalized(lead)}. {then}"
    return Finding(kind="splits", level=level, text=text, brief=lead, explains=EXPLAINED if level == "alarm" else (),
                   figures=figures)  # fmt: skip
