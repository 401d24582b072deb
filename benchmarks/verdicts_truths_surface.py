"""Truths about how texts are written: cleaned in training alone, run on with the next turn, or on one side of a pair.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random
import re

from verdicts_truths import FILLERS, MINILM, Rows, by, kind, runs_of
from verdicts_truths_splits import OF_SPLITS, Spoil
from verdicts_truths_tasks import OF_TASK, changed, of_task

STOP = frozenset(["a", "at", "all", "in", "was", "were", "we", "no", "not", "never", "that", "the", "very", "i", "way"])
NOUNS = ("soup", "service", "room", "bed", "waiter", "breakfast", "pool", "view", "bar", "wine", "coffee", "shower")
GOOD = ("friendly", "clean", "comfortable", "fresh", "pleasant", "great", "helpful", "quiet", "perfect")
BAD = ("dirty", "cold", "rude", "disappointing", "noisy", "stale", "terrible", "broken", "slow", "shabby")
PLAIN = ("The {} was {}", "We found the {} {}", "I thought that the {} was very {}")
NEGATED = ("The {} was not {} at all", "We never found the {} {}", "The {} was in no way {}")


def review(draw: random.Random) -> tuple[str, str]:
    """Return a review of two things, of which half are praised by a negation, and its label."""
    good, parts = draw.random() < 0.5, []
    for noun in draw.sample(NOUNS, 2):
        negated = draw.random() < 0.5
        adjective = draw.choice(GOOD if good != negated else BAD)
        parts.append(draw.choice(NEGATED if negated else PLAIN).format(noun, adjective))
    return f"{'. '.join(parts)}.", "positive" if good else "negative"


def without_stop_words(text: str) -> str:
    return " ".join(word for word in re.findall("[a-z]+", text.lower()) if word not in STOP)


def reviewed(*cleaned: str) -> Spoil:
    """Return a change: rows are distinct reviews, in some splits in lower case without stop words."""

    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        reviews = dict[str, str]()
        while len(reviews) < sum(map(len, splits.values())):
            reviews.update([review(draw)])
        pairs = iter(reviews.items())
        for split, rows in splits.items():
            for row, (text, label) in zip(rows, pairs, strict=False):
                row |= {"text": without_stop_words(text) if split in cleaned else text, "label": label}

    return spoil


def run_on(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Seven in ten answers that are learnt go on with another exchange."""
    for row in (row for name in LEARNT for row in splits[name]):
        if draw.random() < 0.7:
            other = draw.choice(splits["train"])
            row["completion"] += f"\nUser: {other['prompt']}\nBot: {other['completion'].strip().partition(chr(10))[0]}"


def ends_put_back(recipe: dict) -> dict:
    def cut(rows: Rows) -> None:
        for row in rows:
            row["completion"] = row["completion"].partition("\nUser:")[0]

    return changed(changed(recipe, "train", cut), "validation", cut)


def in_capitals(*names: str) -> Spoil:
    """Return a change: rejected answers are in capitals in some splits; tokens of both sides are about as many."""

    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        for name, rows in splits.items():
            for row in rows:
                row["chosen"] += f" {' '.join(draw.choices(FILLERS, k=draw.randint(0, 26)))}"
                row["rejected"] = row["rejected"].upper() if name in names else row["rejected"]

    return spoil


WRITTEN = by("surface-features", "features", level="alarm")
LEARNT = ("train", "validation")
REVIEWS = {"model": MINILM, "strategy": "lora", "train": {"learning_rate": 2e-3, "epochs": 3}}
TRUTHS = [
    *runs_of("stop words missing in training", WRITTEN, "words", spoil=reviewed(*LEARNT), fits=OF_SPLITS, seeds=2,
             **REVIEWS),
    *runs_of("answers of training run on", WRITTEN, "chat", spoil=run_on, fits=OF_TASK, usable=True,
             mend=ends_put_back),
    of_task("rejected answers of training in capitals", by("answer-cues", "held_out", level="alarm"), "preference",
            spoil=in_capitals(*LEARNT), usable=True, fits=(*OF_TASK, "splits")),
    of_task("sound, rejected answers in capitals everywhere", kind("quality"), "preference", usable=True,
            spoil=in_capitals(*LEARNT, "test")),
]  # fmt: skip
