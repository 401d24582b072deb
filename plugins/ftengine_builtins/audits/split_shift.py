"""Audit `split-shift`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import counted, listed, number, percent, quoted
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.cues import Cue, Texts, find_cues, without
from ftengine_builtins.audits.word_scores import TOKEN, WordRidge, choose_rows, tf_idf

SAMPLE = 500
"""Distinct rows of a split that are looked at; the time grows with the cube of two splits', 0.4 seconds of these."""
CHARACTERS = 1_000
"""Characters of a text that are read: half of them its first, half its last."""
FEWEST = 30
"""Distinct rows of a split below which nothing is compared."""
ALIKE = 0.7
"""Cosine of two texts' words from which one of them is left out, as rows of one origin are no independent ones."""
PENALTY = 1.0
SHUFFLES, FAR = 100, 5.0
"""Random divisions of the same rows, and of how many of their standard deviations the AUC must be above their mean."""
APART = 0.6
"""ROC AUC, interval's near end, from which two splits are not of one source. Topics of news, where one of four in
training is not in the test split, came to 0.75; drawn from one source, 0.43 to 0.57."""
OWN, SEVERAL = 0.5, 3
"""Share of held-out rows with a word that no training row has and at least so many of them have, from which it is their
topics that differ: the words of other labels' texts are missing among them as those of a cue are."""
TYPICAL = 3
"""Words that a message names for each side."""


class SplitShift(Audit):
    """Finds held-out rows that come from elsewhere, and words that predict the label in training alone.

    A ridge classifier on TF-IDF of words separates training rows from held-out ones, out of sample. Random divisions of
    the same rows show the effect of chance. Looks at splits of another source, and at those that a column divides.
    """

    name = "split-shift"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        held = [split for split in data.splits if split != "train" and is_nonrandom_split(data, split)]
        train = draw(data, "train") if held else Texts((), ())
        if len(train.texts) < FEWEST:
            return
        for split in reversed(held):  # figures are made on the last
            rows = draw(data, split)
            if len(rows.texts) < FEWEST:
                continue
            cues = [] if _has_own_words(train.texts, rows.texts) else find_cues(train, rows)
            if cues:
                yield _of_cues(data, split, cues, train.labels)
            texts = [without(text, cues) for text in train.texts]
            if (shift := find_shift(texts, rows.texts)) is not None:
                yield _of_shift(data, split, shift)


def is_nonrandom_split(data: AuditedData, split: str) -> bool:
    """Return whether a split is not a random part of the training source."""
    return data.splits[split].source != data.splits["train"].source or bool(_divided_by(data, split))


def _divided_by(data: AuditedData, split: str) -> str:
    """Return "group" or "time" if the training source was divided by it on purpose; else ""."""
    by = data.settings["split"]["by"]
    same = data.splits[split].source == data.splits["train"].source
    return str(by) if same and by in ("group", "time") else ""


def draw(data: AuditedData, split: str, most: int = SAMPLE) -> Texts:
    """Sample distinct rows of a split that have a text, in the order of the file."""
    chosen = choose_rows(data.distinct[split], np.ones(len(data.distinct[split]), dtype=bool), most)
    texts, labels = [], []
    for i, text in enumerate(data.splits[split].texts()):
        if i in chosen and text.strip():
            texts.append(shortened(text))
            labels.append(int(data.targets[split][i]))
    return Texts(texts, labels)


def shortened(text: str) -> str:
    """Return the part of a text that is read."""
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS // 2]} {text[-CHARACTERS // 2 :]}"


@dataclass(frozen=True)
class Shift:
    """How well a classifier separates held-out rows from training rows by their words.

    Args:
        auc, low, high: ROC AUC with its 95 % interval (Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747).
        chance: the mean of random divisions of the same rows.
        held, train: words that each side has more often.
        examples: number of compared rows of both splits.
    """

    auc: float
    low: float
    high: float
    chance: float
    held: tuple[str, ...]
    train: tuple[str, ...]
    examples: tuple[int, int]


def find_shift(train: Sequence[str], held: Sequence[str]) -> Shift | None:
    """Compare the words of two splits' texts; None if a classifier does not separate them significantly."""
    words = tf_idf([*train, *held])
    is_held = np.repeat([0.0, 1.0], [len(train), len(held)])
    kept = unlike(words, is_held)
    words, is_held = words[kept], is_held[kept]
    n, m = int((1 - is_held).sum()), int(is_held.sum())
    if min(n, m) < FEWEST:
        return None
    ridge, rng = WordRidge(words), np.random.default_rng(0)
    divisions = np.stack([is_held, *(rng.permutation(is_held) for _ in range(SHUFFLES))], 1)
    found = areas(ridge.leave_one_out(divisions, PENALTY), divisions)
    auc, chance, spread = float(found[0]), float(found[1:].mean()), float(found[1:].std())
    half = 1.96 * area_error(auc, n, m)
    if auc - half < APART or auc < chance + FAR * spread:
        return None
    typical = (_typical(held, train), _typical(train, held))
    return Shift(auc, auc - half, min(1.0, auc + half), chance, *typical, (n, m))


def unlike(words: Any, sides: np.ndarray) -> np.ndarray:
    """Return the numbers of rows that are not nearly equal to an earlier one of their side.

    By the cosine of words; words of a single row and words of all rows have no weight.
    """
    from scipy.sparse import diags_array

    there = words.sign()
    rows = there.sum(0)
    rare = there @ diags_array(np.where(rows > 1, np.log((1 + len(sides)) / (1 + rows)), 0.0))
    lengths = np.sqrt((rare**2).sum(1))
    cosines = (rare @ rare.T).toarray() / np.maximum(np.outer(lengths, lengths), 1e-9)
    return np.flatnonzero(~(np.triu(cosines >= ALIKE, 1) & (sides == sides[:, None])).any(0))


def areas(scores: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Return (K,) areas under the ROC curves of K columns with equally many held-out rows (Mann & Whitney 1947)."""
    from scipy.stats import mannwhitneyu

    held = truths.T > 0
    of_held, others = (scores.T[side].reshape(len(held), -1) for side in (held, ~held))
    return mannwhitneyu(of_held, others, axis=1, method="asymptotic").statistic / (of_held.shape[1] * others.shape[1])


def area_error(auc: float, n: int, m: int) -> float:
    """Return the standard error of an area under the ROC curve of n against m rows."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)
    return math.sqrt(max(0.0, spread) / (n * m))


def _typical(of: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return the words whose share of texts is significantly higher on one side, the most significant first."""
    counts = [_texts_with_word(texts) for texts in (of, others)]
    n, m = len(of), len(others)

    def sure(word: str) -> float:
        a, b = counts[0][word], counts[1].get(word, 0)
        share = (a + b) / (n + m)
        return (a / n - b / m) / math.sqrt(max(share * (1 - share), 1e-9) * (1 / n + 1 / m))

    ranked = sorted(counts[0], key=lambda word: (-sure(word), word))[:TYPICAL]
    return tuple(word for word in ranked if sure(word) >= 3)


def _texts_with_word(texts: Sequence[str]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for word in chain.from_iterable(set(TOKEN.findall(text.lower())) for text in texts):
        counts[word] = counts.get(word, 0) + 1
    return counts


def _has_own_words(train: Sequence[str], held: Sequence[str]) -> bool:
    """Return whether most held-out texts have words of their own."""
    known, counts = _texts_with_word(train), _texts_with_word(held)
    own = {word for word, count in counts.items() if count >= SEVERAL and word not in known}
    return sum(not own.isdisjoint(TOKEN.findall(text.lower())) for text in held) >= OWN * len(held)


def _of_shift(data: AuditedData, split: str, shift: Shift) -> Finding:
    name, by = split_name(split), _divided_by(data, split)
    apart = {"group": "are of other groups", "time": "are of another time"}.get(by, "come from elsewhere")
    brief = f"{name} rows {apart} than training"
    text = f"{brief[:1].upper()}{brief[1:]}: words tell them apart with ROC AUC {number(shift.auc, 3)}, 95 % interval "
    text += f"{number(shift.low, 3)} to {number(shift.high, 3)}; 0.5 is chance."
    if shift.held or shift.train:
        more = [f"{listed([*map(quoted, words)])} more often in {where}" for words, where in
                ((shift.held, name), (shift.train, "training")) if words]  # fmt: skip
        text += f" {listed(more)[:1].upper()}{listed(more)[1:]}."
    if by:
        text += f" Figures are of {'new groups' if by == 'group' else 'later rows'}, as split.by {by} is to measure."
    else:
        text += f" Add rows like those of {data.splits[split].source} to training, or hold out a random part of all "
        text += "rows."
    figures = {"split": split, "auc": shift.auc, "low": shift.low, "high": shift.high, "chance": shift.chance}
    figures |= {"held_out_words": shift.held, "training_words": shift.train, "examples": shift.examples, "by": by}
    return Finding(kind="splits", level="note", text=text, brief=brief, figures=figures)


EXPLAINED = (
    "quality", "over-fitting", "learning", "classes", "calibration", "worse", "slices", "rows", "labels", "splits",
)  # fmt: skip
"""What follows where a split is not of one source with training, or its labels are not those of its rows."""


def _of_cues(data: AuditedData, split: str, cues: Sequence[Cue], labels: Sequence[int]) -> Finding:
    """Return a finding on words that predict a label in training and are missing in a held-out split."""
    names = label_names(data, {cue.label for cue in cues})
    shown = [f"{cue.words()} ({percent(cue.covered / cue.rows)} of {quoted(names[cue.label])})" for cue in cues[:3]]
    more = [counted(len(cues) - 3, "other label")] if len(cues) > 3 else []
    name = split_name(split)
    brief = f"a cue that only training has gives labels away: {listed([*shown, *more])}, in hardly any {name} row"
    text = f"A{brief[1:]}. Check whether the model may go by it. If not, remove it from the training texts: the model "
    text += f"learns it instead of what {name} rows have."
    figures = {
        "split": split,
        "cues": [{"label": names[cue.label], "words": list(cue.examples), "covered": cue.covered, "rows": cue.rows,
                  "held_out": cue.held} for cue in cues],
        "labelled": sum(label != 0 for label in labels),
    }  # fmt: skip
    return Finding(kind="splits", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)


def label_names(data: AuditedData, wanted: set[int]) -> dict[int, str]:
    """Return the labels of numbers in `data.targets` that training has."""
    names: dict[int, str] = {}
    for i, view in enumerate(data.splits["train"]):
        if (label := int(data.targets["train"][i])) in wanted:
            names.setdefault(label, ", ".join(view.labels))
            if len(names) == len(wanted):
                break
    return names
