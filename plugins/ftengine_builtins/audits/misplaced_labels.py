"""Audit `misplaced-labels`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, View
from ftengine.text import counted, number, percent, quoted
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED, find_shift, is_nonrandom_split, shortened, unlike
from ftengine_builtins.audits.word_scores import TOKEN, WordRidge, choose_rows, tf_idf
from ftengine_builtins.label_fit import (
    SURE,
    Offset,
    agreement,
    confusion_of,
    find_curve,
    find_number_offset,
    find_offset,
    find_swap,
    find_unit,
    follow_one_another,
    is_distributed_alike,
    is_distributed_otherwise,
    is_less,
    is_lost,
    one_grade_off,
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
OFF, WIDER = 0.5, 1.6
"""How far the numbers of a split may lie from those of training, in interquartile ranges of these, and how many times
their spread; beyond, they are compared."""
OTHERWISE, OF_WORD, FOR_WORD = 0.1, 8, 3.0
"""By how much more held-out rows are answered rightly by one another than by training for labels to follow another rule
there, and rows of a split and standard errors that a word needs to be named. Of 40 random divisions of BBC news, some
with other shares of labels, none came to 0.07."""
NEGATIVE, SIZES = 0.2, 5
"""Share of negative numbers (interval's near end) of one split, where the other has none, and how many distinct sizes
numbers have there at least, from which signs may have been lost: one or two sizes are alike in any case."""


class MisplacedLabels(Audit):
    """Finds labels of neighbouring rows, of other classes, by another rule, or at random.

    A ridge classifier on TF-IDF of words, trained on the training rows, answers each of them out of sample, and
    held-out rows of another source. Its answers are compared with the labels of the rows, of the neighbouring rows, and
    of swapped classes. Numbers are also compared in location and spread, as they are, in another unit and without
    signs.
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
            tests = (
                (_of_rows_around, _signs, _numbers)
                if train.numbers
                else (_swapped, _of_rows_around, _by_chance, _by_another_rule)
            )
            findings = (test(data, split, (train, learnt[0]), (rows, answers)) for test in tests)
            yield from islice((finding for finding in findings if finding is not None), 1)


@dataclass(frozen=True)
class Labelled:
    """Rows of a split: texts, and the labels of the rows and of their neighbours.

    Args:
        labels: for each offset, 0 first, (n,) numbers of labels, -1 for none; or target numbers, nan for none.
        names: of the labels; empty for numbers.
    """

    texts: list[str]
    labels: dict[int, np.ndarray]
    names: tuple[str, ...]

    @property
    def numbers(self) -> bool:
        return not self.names

    def targets(self, offset: int = 0) -> np.ndarray:
        """Return (n, labels) zeros and ones, or (n, 1) numbers; a missing label is all 0, or the mean."""
        labels = self.labels[offset]
        if self.numbers:
            return np.where(np.isnan(labels), np.nanmean(labels), labels)[:, None]
        return np.vstack([np.eye(len(self.names)), np.zeros(len(self.names))])[labels]

    def select(self, rows: np.ndarray) -> Labelled:
        """Return some rows with their own labels."""
        return Labelled([self.texts[i] for i in rows], {0: self.labels[0][rows]}, self.names)

    def confusion(self, answers: np.ndarray) -> np.ndarray:
        """Return (labels, labels) counts: labels by the largest of (n, labels) answers."""
        return confusion_of(self.labels[0], answers.argmax(1), len(self.names))

    def find_offset(self, answers: Mapping[int, np.ndarray]) -> Offset | None:
        """Return the offset of the rows whose labels fit (n, labels) answers, or (n, 1) numbers, better."""
        if self.numbers:
            return find_number_offset({x: of[:, 0] for x, of in answers.items()}, self.labels)
        return find_offset({x: of.argmax(1) for x, of in answers.items()}, self.labels, len(self.names))


def _labelled(data: AuditedData, split: str) -> Labelled | None:
    """Sample distinct rows with a text and one label or number; None if rows have none."""
    rows, known = data.splits[split], data.targets[split]
    looked = next((view for view in rows if view.label is not None), None)
    if looked is None or isinstance(looked.label, (list, tuple, dict)) or not _text(looked):
        return None
    chosen = choose_rows(data.distinct[split], known != 0, SAMPLE)
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
    """Return the text that predicts a label; "" if the input is not text."""
    return shortened(" ".join(part for part in view.inputs if isinstance(part, str)).strip())


def _numbered(data: AuditedData, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (rows,) numbers of a split's labels, -1 for those unknown to training, and training's labels."""
    known, first = np.unique(data.targets["train"], return_index=True)
    first, known = first[known != 0], known[known != 0]
    at = dict.fromkeys(first.tolist(), "")
    for i, view in enumerate(islice(data.splits["train"], max(at, default=-1) + 1)):
        if i in at:
            at[i] = ", ".join(view.labels)
    place = np.minimum(np.searchsorted(known, data.targets[split]), max(0, len(known) - 1))
    ids = np.where(known[place] == data.targets[split], place, -1) if len(known) else np.full(len(place), -1)
    return ids.astype(np.int64), tuple(at.values())


def _in_training(data: AuditedData, train: Labelled, answers: Mapping[int, np.ndarray]) -> Finding | None:
    """Say whose labels fit the training rows better than their own."""
    offset = train.find_offset(answers)
    if offset is None or follow_one_another(train.labels):
        return None
    return _of_offset(data, "train", offset, numbers=train.numbers)


Answered = tuple[Labelled, np.ndarray]
"""Rows, and (n, labels) or (n, 1) answers of a classifier that has not seen their labels."""


def _of_rows_around(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if neighbouring rows' labels fit the answers to a held-out split better than its own."""
    offset = held[0].find_offset(dict.fromkeys(OFFSETS, held[1]))
    return None if offset is None else _of_offset(data, split, offset, numbers=held[0].numbers)


def _of_offset(data: AuditedData, split: str, offset: Offset, *, numbers: bool) -> Finding:
    which = f"{counted(abs(offset.rows), 'row')} {'further down' if offset.rows > 0 else 'further up'}"
    fit = f"the labels {which} fit {percent(offset.fit)} of {offset.n:,} answers that words give, their own "
    fit += percent(offset.own)
    if numbers:
        fit = f"with what words predict, the numbers {which} correlate by {number(offset.fit, 3)}, their own by "
        fit += number(offset.own, 3)
    way = "up" if offset.rows > 0 else "down"
    then = f"If they slipped, move the labels of {data.splits[split].source} {way} "
    then += f"by {counted(abs(offset.rows), 'row')}."
    return _finding(split, fit, then, {"offset": offset.rows, "fit": offset.fit, "own": offset.own, "n": offset.n})


def _swapped(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding on classes that are answered as one another as often as training answers them rightly.

    If words mislead by design, as in a challenge set, answers contradict labels less often than that.
    """
    names, learnt, confusion = train[0].names, train[0].confusion(train[1]), held[0].confusion(held[1])
    if (swap := find_swap(confusion)) is None or not all(learnt[i, i] > learnt[i, j] for i, j in swap.classes):
        return None
    labels, answers = zip(*swap.classes, strict=True)
    before, after = agreement(learnt[np.ix_(labels, labels)]), agreement(confusion[np.ix_(labels, answers)])
    if is_less(before, after, errors=2):
        return None
    pairs = ", ".join(f"{names[i]} → {names[j]}" for i, j in swap.classes)
    fit = f"by their words, {swap.fit:,} of {swap.n:,} rows fit other labels ({pairs}); {swap.own:,} fit their own"
    figures = {"swapped": [(names[i], names[j]) for i, j in swap.classes]}
    figures |= {"fit": swap.fit, "own": swap.own, "n": swap.n}
    if grade := one_grade_off(confusion, swap, names):
        text = f"Check how {split_name(split)} rows were rated: {fit}. Are grades one "
        text += f"{'higher' if grade > 0 else 'lower'} there? If they were numbered in each file by itself, number "
        text += f"those of {data.splits[split].source} as training has them."
        return Finding(kind="splits", level="note", text=text, figures={"split": split, **figures, "grade": grade})
    then = f"If they are exchanged, swap them in {data.splits[split].source}."
    if not swap.is_exchange:
        then = "Were labels numbered in each file by itself? Number those of "
        then += f"{data.splits[split].source} as training has them."
    return _finding(split, fit, then, figures)


def _by_chance(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if the labels of a held-out split agree with answers only by chance, though texts are alike."""
    before, after = (agreement(rows.confusion(answers)) for rows, answers in (train, held))
    if not is_lost(before, after) or find_shift(train[0].texts, held[0].texts) is not None:
        return None
    fit = f"by their words, {percent(after.share)} of {after.n:,} rows are answered rightly, as by chance "
    fit += f"({percent(after.chance)}), and {percent(before.share)} of training rows out of sample"
    figures = {"right": after.share, "chance": after.chance, "training": before.share, "n": after.n}
    then = (
        f"If rows of {data.splits[split].source} were mixed up, join labels and texts again by an id; a test set whose "
    )
    then += "words mislead by design looks the same."
    return _finding(split, fit, then, figures)


def _by_another_rule(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if a held-out split's own words predict its labels far better than training's do.

    Each held-out row is answered by the other held-out rows, and by at least as many training rows with the same shares
    of labels. The former are better only if training's labels were given differently: by keywords, say.
    """
    from scipy.stats import binom

    if data.splits[split].source == data.splits["train"].source:  # groups are alike within a split
        return None
    like, rows = _with_shares_of(train[0], held[0])
    words = tf_idf([*like.texts, *rows.texts])
    known = len(like.texts) + unlike(words[len(like.texts) :], np.zeros(len(rows.texts)))
    truths = rows.labels[0][known - len(like.texts)]
    if len(known) < FEWEST or len(like.texts) < len(known):
        return None
    one_hot = np.eye(len(rows.names))[truths]
    own = WordRidge(words[known]).leave_one_out(one_hot, PENALTY).argmax(1) == truths
    ridge = WordRidge(words[: len(like.texts)])
    learnt = ridge.predict(words[known], like.targets(), PENALTY).argmax(1) == truths
    only, against = int((own & ~learnt).sum()), int((learnt & ~own).sum())
    if own.mean() - learnt.mean() < OTHERWISE or binom.sf(only - 1, only + against, 0.5) > SURE:
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    name = split_name(split)
    fit = f"of {len(known):,} {name} rows {percent(learnt.mean())} are answered rightly by training's words, "
    fit += f"{percent(own.mean())} by those of the other {name} rows{_other_words(like, rows, name)}"
    figures = {"right": float(learnt.mean()), "own": float(own.mean()), "n": len(known), "rule": True}
    then = "Was one file labelled by a program (by keywords, say) or by other guidelines? Label both in one way."
    lead = f"check whether training labels were given by another rule than {name} labels"
    return _finding(split, fit, then, figures, lead)


def _with_shares_of(train: Labelled, held: Labelled) -> tuple[Labelled, Labelled]:
    """Return as many training rows as have the held-out rows' shares of labels, and at most as many held-out rows."""
    counts = [np.bincount(rows.labels[0][rows.labels[0] >= 0], minlength=len(train.names)) for rows in (train, held)]
    shares = counts[1] / max(1, counts[1].sum())
    total = float(min((n / share for n, share in zip(counts[0], shares, strict=True) if share), default=0))
    kept = np.concatenate(
        [np.flatnonzero(train.labels[0] == i)[: int(total * share)] for i, share in enumerate(shares)]
    )
    others = np.random.default_rng(0).permutation(np.flatnonzero(held.labels[0] >= 0))[: len(kept)]
    return train.select(np.sort(kept)), held.select(np.sort(others))


def _other_words(train: Labelled, held: Labelled, name: str) -> str:
    """Return the word whose rows have a label significantly more often in one split; "" if there is none."""
    best = (FOR_WORD, "")
    having = [_rows_by_word(rows) for rows in (train, held)]
    for word in having[0].keys() & having[1].keys():
        n, m = (sum(side[word].values()) for side in having)
        for label, count in having[0][word].items() if min(n, m) >= OF_WORD else ():
            a, b, share = count / n, having[1][word][label] / m, (count + having[1][word][label]) / (n + m)
            error = math.sqrt(max(share * (1 - share), 1 / (n + m)) * (1 / n + 1 / m))
            what = f"; rows with {quoted(word)} are {quoted(train.names[label])} in {percent(a)} of training and "
            best = max(best, (abs(a - b) / error, f"{what}{percent(b)} of {name} rows"))
    return best[1]


def _rows_by_word(rows: Labelled) -> dict[str, Counter[int]]:
    """Return the number of rows of each label that contain each word."""
    found: dict[str, Counter[int]] = {}
    for text, label in zip(rows.texts, rows.labels[0].tolist(), strict=True):
        for word in set(TOKEN.findall(text.lower())) if label >= 0 else ():
            found.setdefault(word, Counter())[label] += 1
    return found


def _signs(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if training or a split has no minus signs, and equals the other without its signs."""
    numbers = {name: of.labels[0][~np.isnan(of.labels[0])] for name, (of, _) in (("train", train), (split, held))}
    lost, other = ("train", split) if numbers["train"].min() >= 0 else (split, "train")
    negative = int((numbers[other] < 0).sum())
    sizes = np.abs(numbers[other])
    if share_within(negative, len(sizes))[0] < NEGATIVE or len(np.unique(sizes)) < SIZES:
        return None
    if any(isinstance(view.label, float) and view.label < 0 for view in data.splits[lost]):
        return None
    if not is_distributed_otherwise(*numbers.values()) or not is_distributed_alike(numbers[lost], sizes):
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    share = negative / len(sizes)
    fit = f"{split_name(lost)} numbers have no minus sign, {percent(share)} of {split_name(other)} numbers do, and "
    fit += "without signs they are alike"
    then = f"If so, export {data.splits[lost].source} again with signs."
    lead = f"check whether {split_name(lost)} numbers lost their minus signs"
    return _finding(split, fit, then, {"lost": lost, "negative": share, "n": len(sizes)}, lead)


def _numbers(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if a split's numbers differ from training's in location or spread, though texts are alike."""
    trained, other = (of.labels[0][~np.isnan(of.labels[0])] for of, _ in (train, held))
    middle, there = float(np.median(trained)), float(np.median(other))
    spread, wide = (float(np.subtract(*np.percentile(x, (75, 25)))) for x in (trained, other))
    if not spread or not wide:
        return None
    differ = abs(there - middle) >= OFF * spread or max(wide / spread, spread / wide) >= WIDER
    if not differ or not is_distributed_otherwise(trained, other):
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    fit = f"their median is {number(there, 3)} and their interquartile range {number(wide, 3)}, in training "
    fit += f"{number(middle, 3)} and {number(spread, 3)}, though the texts are alike"
    figures = {"median": there, "spread": wide, "training_median": middle, "training_spread": spread, "n": len(other)}
    if (unit := find_unit(trained, other)) is None:
        if (curve := find_curve(trained, other)) is not None:
            fit += f"; {curve} those of training is like them"
            then = f"If so, bring the numbers of {data.splits[split].source} and of training to one scale."
            lead = f"check whether {split_name(split)} rows have numbers on another scale than training"
            return _finding(split, fit, then, {**figures, "curve": curve}, lead)
        lead = f"{split_name(split)} rows have other numbers than training"
        text = f"{lead[:1].upper()}{lead[1:]}: {fit}."
        return Finding(kind="splits", level="note", text=text, brief=lead, figures={"split": split, **figures})
    factor, plus = unit
    fit += f"; {number(factor, 3)} times those of training{f' plus {number(plus, 3)}' if plus else ''} are like them"
    then = f"If so, convert the numbers of {data.splits[split].source} to training's unit."
    lead = f"check whether {split_name(split)} rows have numbers of another unit than training"
    return _finding(split, fit, then, {**figures, "factor": factor, "plus": plus}, lead)


def _finding(split: str, fit: str, then: str, figures: dict[str, Any], lead: str = "") -> Finding:
    lead = lead or f"check whether labels of {split_name(split)} rows belong to them"
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{lead[:1].upper()}{lead[1:]}: {fit}. {then}",
        brief=f"{lead}: {fit}",
        explains=EXPLAINED,
        figures={"split": split, **figures},
    )
