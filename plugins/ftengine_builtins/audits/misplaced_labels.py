"""Audit `misplaced-labels`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import counted, listed, number, percent, quoted
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.split_shift import CHARACTERS, EXPLAINED, find_shift, is_nonrandom_split
from ftengine_builtins.audits.word_scores import WordRidge, tf_idf
from ftengine_builtins.label_fit import (
    ERRORS,
    SURE,
    Offset,
    agreement,
    find_number_offset,
    find_offset,
    find_swap,
    is_lost,
)

SAMPLE = 700
"""Distinct rows of a split that are looked at; the time grows with the cube of those of training, 0.3 seconds of these
on one core."""
FEWEST, FEWEST_HELD = 60, 20
"""Rows with a text and a label below which nothing is said, of training and of a held-out split."""
MOST_LABELS = 100
OFFSETS = (0, -1, 1, -2, 2, -3, 3)
"""Rows whose labels are tried, from the row itself."""
PENALTY = 0.3
SWAPPED = 0.05
"""Probability by chance up to which classes are swapped where labels of a split are met by chance alone."""
OFF, WIDER = 0.5, 1.6
"""How far the numbers of a split may lie from those of training, in interquartile ranges of these, and how many times
their spread; beyond, where ranks are ERRORS apart, they are of another unit."""


class MisplacedLabels(Audit):
    """Labels that do not belong to their rows: those of a row before or behind fit, two classes are swapped, or none.

    A ridge classifier on TF-IDF of words, which learns from the training rows, answers each of them without having seen
    its label, and held-out rows of a source of their own. Its answers are compared with the labels of the rows, of the
    rows around them, and of swapped classes. Numbers are also compared by their place and spread.
    """

    name = "misplaced-labels"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        train = _labelled(data, "train")
        if train is None or len(train.texts) < FEWEST:
            return
        held = {
            split: rows
            for split in data.splits
            if split != "train" and is_nonrandom_split(data, split)
            if (rows := _labelled(data, split)) is not None and len(rows.texts) >= FEWEST_HELD
        }
        every = tf_idf([text for rows in (train, *held.values()) for text in rows.texts])
        ridge, start = WordRidge(every[: len(train.texts)]), len(train.texts)
        learnt = {offset: ridge.leave_one_out(train.targets(offset), PENALTY) for offset in OFFSETS}
        if (finding := _in_training(data, train, learnt)) is not None:
            yield finding
            return  # what learns from these says nothing of others
        for split, rows in held.items():
            answers = ridge.predict(every[start : start + len(rows.texts)], train.targets(), PENALTY)
            start += len(rows.texts)
            tests = (_numbers, _of_rows_around) if train.numbers else (_swapped, _of_rows_around, _by_chance)
            findings = (test(data, split, (train, learnt[0]), (rows, answers)) for test in tests)
            yield from islice((finding for finding in findings if finding is not None), 1)


@dataclass(frozen=True)
class Labelled:
    """Rows of a split: texts, and the labels of these rows and of those around them.

    Args:
        labels: for each offset, 0 first, (n,) numbers of labels, -1 where there is none; or the numbers to be learnt,
            nan where there is none.
        names: of the labels; empty for numbers.
    """

    texts: list[str]
    labels: dict[int, np.ndarray]
    names: tuple[str, ...]

    @property
    def numbers(self) -> bool:
        return not self.names

    def targets(self, offset: int = 0) -> np.ndarray:
        """Return (n, labels) 0 and 1, or (n, 1) numbers; where there is no label they are all 0, or the mean."""
        labels = self.labels[offset]
        if self.numbers:
            return np.where(np.isnan(labels), np.nanmean(labels), labels)[:, None]
        return np.vstack([np.eye(len(self.names)), np.zeros(len(self.names))])[labels]

    def right(self, answers: np.ndarray, offset: int) -> np.ndarray:
        """Return (n,) 1 where the highest of (n, labels) answers is the label so many rows behind; nan for none."""
        labels = self.labels[offset]
        return np.where(labels < 0, np.nan, answers.argmax(1) == labels)

    def confusion(self, answers: np.ndarray) -> np.ndarray:
        """Return (labels, labels) counts, labels by answers."""
        counts, known = np.zeros((len(self.names), len(self.names)), dtype=np.int64), self.labels[0] >= 0
        np.add.at(counts, (self.labels[0][known], answers.argmax(1)[known]), 1)
        return counts


def _labelled(data: AuditedData, split: str) -> Labelled | None:
    """Draw distinct rows with a text and one label or number; None where rows have none of these."""
    rows, known = data.splits[split], data.targets[split]
    looked = next((view for view in rows if view.label is not None), None)
    if looked is None or isinstance(looked.label, (list, tuple, dict)) or not _text(looked):
        return None
    first = np.unique(np.where(known != 0, data.distinct[split], -1), return_index=True)[1]
    chosen = set(np.random.default_rng(0).permutation(first[known[first] != 0])[:SAMPLE].tolist())
    numbers = isinstance(looked.label, float)
    texts, places, values = [], [], []
    for i, view in enumerate(rows):
        if numbers:
            values.append(view.label if isinstance(view.label, float) else math.nan)
        if i in chosen and (text := _text(view)):
            texts.append(text)
            places.append(i)
    given, names = (np.array(values), ()) if numbers else _numbered(data, split)
    if not texts or (not numbers and not 2 <= len(names) <= MOST_LABELS):
        return None
    beyond = np.full(max(OFFSETS), np.nan if numbers else -1)
    padded, at = np.concatenate([beyond, given, beyond]).astype(given.dtype), np.array(places) + len(beyond)
    return Labelled(texts, {offset: padded[at + offset] for offset in OFFSETS}, names)


def _text(view: View) -> str:
    """Return what a label is to be told by; "" where that is no text."""
    return " ".join(one for one in view.inputs if isinstance(one, str))[:CHARACTERS].strip()


def _numbered(data: AuditedData, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (rows,) numbers of a split's labels, -1 for those that training does not have, and training's labels."""
    known, first = np.unique(data.targets["train"], return_index=True)
    first, known = first[known != 0], known[known != 0]
    at = dict.fromkeys(first.tolist(), "")
    for i, view in enumerate(data.splits["train"]):
        if i in at:
            at[i] = ", ".join(view.labels)
    place = np.minimum(np.searchsorted(known, data.targets[split]), max(0, len(known) - 1))
    ids = np.where(known[place] == data.targets[split], place, -1) if len(known) else np.full(len(place), -1)
    return ids.astype(np.int64), tuple(at.values())


def _in_training(data: AuditedData, train: Labelled, answers: Mapping[int, np.ndarray]) -> Finding | None:
    """Say whose labels fit the training rows better than their own."""
    if train.numbers:
        offset = find_number_offset({x: of[:, 0] for x, of in answers.items()}, train.labels)
    else:
        offset = find_offset({x: train.right(of, x) for x, of in answers.items()})
    return None if offset is None else _of_offset(data, "train", offset, numbers=train.numbers)


Answered = tuple[Labelled, np.ndarray]
"""Rows, and (n, labels) or (n, 1) answers of a classifier that has not seen their labels."""


def _of_rows_around(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Say whose labels fit the answers to a held-out split's rows better than their own."""
    rows, answers = held
    if rows.numbers:
        offset = find_number_offset(dict.fromkeys(OFFSETS, answers[:, 0]), rows.labels)
    else:
        offset = find_offset({x: rows.right(answers, x) for x in OFFSETS})
    return None if offset is None else _of_offset(data, split, offset, numbers=rows.numbers)


def _of_offset(data: AuditedData, split: str, offset: Offset, *, numbers: bool) -> Finding:
    which = f"{counted(abs(offset.rows), 'row')} {'further down' if offset.rows > 0 else 'further up'}"
    fit = f"the labels {which} fit {percent(offset.fit)} of {offset.n:,} answers that words give, their own "
    fit += percent(offset.own)
    if numbers:
        fit = f"with what words predict, the numbers {which} correlate by {number(offset.fit, 3)}, their own by "
        fit += number(offset.own, 3)
    way = "up" if offset.rows > 0 else "down"
    then = f"Move the labels of {data.splits[split].source} {way} by {counted(abs(offset.rows), 'row')}."
    return _finding(split, fit, then, {"offset": offset.rows, "fit": offset.fit, "own": offset.own, "n": offset.n})


def _swapped(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Say which classes are swapped in a held-out split."""
    names, learnt, confusion = train[0].names, train[0].confusion(train[1]), held[0].confusion(held[1])
    lost = is_lost(agreement(learnt), agreement(confusion))
    swap = find_swap(confusion, SWAPPED if lost else SURE)
    if swap is None or not all(learnt[i, i] > learnt[i, j] for i, j in swap.classes):
        return None
    pairs = listed([f"{quoted(names[i])} is {quoted(names[j])}" for i, j in swap.classes])
    fit = (
        f"by their words, what is labelled {pairs}: so {swap.fit:,} of {swap.n:,} rows are answered, and {swap.own:,} "
    )
    fit += "as they are labelled"
    figures = {"swapped": [(names[i], names[j]) for i, j in swap.classes]}
    figures |= {"fit": swap.fit, "own": swap.own, "n": swap.n}
    then = f"Swap these labels in {data.splits[split].source}."
    if not swap.is_exchange:
        then = "Were labels numbered in each file by itself? Number those of "
        then += f"{data.splits[split].source} as training has them."
    return _finding(split, fit, then, figures)


def _by_chance(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Say that the labels of a held-out split are met by chance alone, though texts are alike."""
    before, after = (agreement(rows.confusion(answers)) for rows, answers in (train, held))
    if not is_lost(before, after) or find_shift(train[0].texts, held[0].texts) is not None:
        return None
    fit = f"by their words, {percent(after.share)} of {after.n:,} rows are answered rightly, as by chance "
    fit += f"({percent(after.chance)}), and {percent(before.share)} of training rows that were not seen"
    figures = {"right": after.share, "chance": after.chance, "training": before.share, "n": after.n}
    return _finding(split, fit, f"Put the labels of {data.splits[split].source} beside their texts again.", figures)


def _numbers(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Say where a split's numbers lie far from those of training, or are spread otherwise, though texts are alike."""
    one, other = (of.labels[0][~np.isnan(of.labels[0])] for of, _ in (train, held))
    middle, there = float(np.median(one)), float(np.median(other))
    spread, wide = (float(np.subtract(*np.percentile(x, (75, 25)))) for x in (one, other))
    if not spread or not wide:
        return None
    moved = abs(there - middle) >= OFF * spread and _ranks_differ(one, other)
    wider = max(wide / spread, spread / wide) >= WIDER and _ranks_differ(abs(one - middle), abs(other - there))
    if not (moved or wider) or find_shift(train[0].texts, held[0].texts) is not None:
        return None
    fit = f"their median is {number(there, 3)} and their interquartile range {number(wide, 3)}, in training "
    fit += f"{number(middle, 3)} and {number(spread, 3)}, though the texts are alike"
    figures = {"median": there, "spread": wide, "training_median": middle, "training_spread": spread, "n": len(other)}
    then = f"Bring the numbers of {data.splits[split].source} to the unit of those of training."
    return _finding(split, fit, then, figures, what="numbers of another unit than in training")


def _ranks_differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether ranks are surely higher on one side (Mann & Whitney 1947)."""
    from scipy.stats import rankdata

    n, m = len(one), len(other)
    below = rankdata(np.concatenate([one, other]))[n:].sum() - m * (m + 1) / 2
    return abs(below - n * m / 2) >= ERRORS * math.sqrt(n * m * (n + m + 1) / 12)


def _finding(split: str, fit: str, then: str, figures: dict[str, Any], what: str = "") -> Finding:
    name = split_name(split)
    lead = f"{name} rows have {what}" if what else f"labels of {name} rows do not belong to them"
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{lead[:1].upper()}{lead[1:]}: {fit}. {then}",
        brief=f"{lead}: {fit}",
        explains=EXPLAINED,
        figures={"split": split, **figures},
    )
