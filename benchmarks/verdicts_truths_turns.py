"""Truths about who says what: users in the place of assistants, and openings that tell the chosen answers.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from verdicts_truths import FILLERS, Rows, by, kind, runs_of, small_talk
from verdicts_truths_splits import Spoil
from verdicts_truths_tasks import OF_TASK, changed, of_task

SIZES = (240, 40, 120)
DROP = {"leaks": "drop"}


def talk(*exchanged: str) -> Spoil:
    """Return a change: rows are small talk, whose sides are exchanged in some splits."""

    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        pairs = draw.sample(small_talk(), sum(map(len, splits.values())))
        for split, rows in splits.items():
            for row in rows:
                row["prompt"], row["completion"] = pairs.pop()[:: -1 if split in exchanged else 1]

    return spoil


def sides_back(*names: str) -> Callable[..., dict]:
    def swap(rows: Rows) -> None:
        for row in rows:
            row["prompt"], row["completion"] = row["completion"], row["prompt"]

    def mend(recipe: dict) -> dict:
        for name in names:
            recipe = changed(recipe, name, swap)
        return recipe

    return mend


def begun(side: str, *names: str) -> Spoil:
    """Return a change: the answers of a side begin alike in some splits, the others with any two words."""
    other = {"chosen": "rejected", "rejected": "chosen"}[side]

    def spoil(draw: random.Random, splits: dict[str, Rows]) -> None:
        for row in (row for name in names for row in splits[name]):
            row[side] = f" you can{row[side]}"
            row[other] = f" {' '.join(draw.sample(FILLERS, k=2))}{row[other]}"

    return spoil


def without_beginning(recipe: dict) -> dict:
    def cut(rows: Rows) -> None:
        for row in rows:
            for side in ("chosen", "rejected"):
                row[side] = f" {row[side].split(maxsplit=2)[2]}"

    return changed(changed(recipe, "train", cut), "validation", cut)


BEGUN = by("answer-cues", "held_out", level="alarm")
LEARNT = ("train", "validation")
TRUTHS = [
    *runs_of("prompts and answers exchanged in training", by("exchanged-roles", "exchanged"), "chat", fits=OF_TASK,
             spoil=talk(*LEARNT), sizes=SIZES, data=DROP, mend=sides_back(*LEARNT)),
    *runs_of("prompts and answers exchanged in test", by("exchanged-roles", "exchanged"), "chat", fits=OF_TASK,
             spoil=talk("test"), sizes=SIZES, data=DROP, mend=sides_back("test")),
    *(of_task("chosen answers of training begin alike", BEGUN, task, spoil=begun("chosen", *LEARNT), usable=True,
              fits=(*OF_TASK, "splits"), mend=without_beginning) for task in ("preference", "reward")),
    of_task("rejected answers of training begin alike", BEGUN, "preference", spoil=begun("rejected", *LEARNT),
            usable=True, fits=(*OF_TASK, "splits"), mend=without_beginning),
    of_task("sound, chosen answers begin alike everywhere", kind("quality"), "preference", usable=True,
            spoil=begun("chosen", "train", "validation", "test")),
]  # fmt: skip
