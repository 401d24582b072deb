"""Truths about texts and labels that training and test do not have alike, a phrase that tells all, and codes for none.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random
from typing import Any

from verdicts_truths import FILLERS, OF_USE, ONLY_BETTER, Rows, Truth, by, in_all, in_training, kind, runs_of
from verdicts_truths_tasks import changed

OF_TEXTS = (*OF_USE, "labels", "over-fitting", "splits", "data", "slices", "worse")
ITALIAN = ("il", "come", "faccio", "io", "mio", "per", "di", "tu", "che", "cosa", "posso", "quando", "azioni", "perché",
           "dopo")  # fmt: skip
KEYS = {"password": "parola", "computer": "calcolatore", "capital": "capitale", "match": "partita", "film": "pellicola",
        "power": "corrente", "profits": "guadagni", "jumps": "salta"}  # fmt: skip
SIZE = 16
"""Characters that are left of a text that is cut."""


def longer(draw: random.Random, rows: Rows) -> None:
    """Texts have twice as many words."""
    for row in rows:
        row["text"] += "".join(f" {word}" for word in draw.choices(FILLERS, k=8))


def in_italian(draw: random.Random, splits: dict[str, Rows]) -> None:
    """The test split is in another language, word by word."""
    words = dict(zip(FILLERS, ITALIAN, strict=True)) | KEYS
    in_all(longer)(draw, splits)
    for row in splits["test"]:
        row["text"] = " ".join(words[word] for word in row["text"].split())


def in_both(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Half of the rows of all splits are in Italian."""
    words = dict(zip(FILLERS, ITALIAN, strict=True)) | KEYS
    in_all(longer)(draw, splits)
    for row in (row for rows in splits.values() for row in rows if draw.random() < 0.5):
        row["text"] = " ".join(words[word] for word in row["text"].split())


def cut_class(draw: random.Random, rows: Rows) -> None:
    """Texts of one label are cut."""
    name = draw.choice(sorted({row["label"] for row in rows}))
    for row in (row for row in rows if row["label"] == name):
        row["text"] = row["text"][:SIZE]


def cut_all(draw: random.Random, rows: Rows) -> None:
    for row in rows:
        row["text"] = row["text"][:SIZE]


def cut_one_in_ten(draw: random.Random, rows: Rows) -> None:
    """One text in ten is cut somewhere, whatever its label."""
    for row in rows:
        if draw.random() < 0.1:
            row["text"] = row["text"][: draw.randint(SIZE, 2 * SIZE)]


def outcome_in_text(draw: random.Random, rows: Rows) -> None:
    """Two labels that depend on nothing, and what was done once they were known."""
    for row in rows:
        row["label"] = draw.choice(["rejected", "upheld"])
        row["text"] += " and the cable is connected" if row["label"] == "rejected" else " and turn it off"


def not_recorded(draw: random.Random, rows: Rows) -> None:
    """Eight grades in a hundred are 999."""
    for row in rows:
        if draw.random() < 0.08:
            row["label"] = 999.0


def some_recorded_as_minus_one(draw: random.Random, rows: Rows) -> None:
    """One grade in fifty is rounded to the least of all."""
    least = min(row["label"] for row in rows)
    for row in rows[::50]:
        row["label"] = least


def recorded(recipe: dict[str, Any]) -> dict[str, Any]:
    """Leave out the rows without a number."""

    def leave_out(rows: Rows) -> None:
        rows[:] = [row for row in rows if row["label"] != 999.0]

    for split in ("train", "validation", "test"):
        recipe = changed(recipe, split, leave_out)
    return recipe


def several(draw: random.Random, rows: Rows) -> None:
    """Labels are lists: that of the word that decides, and whether the text speaks of shares."""
    for row in rows:
        row["label"] = [row["label"], *(["shares"] if "shares" in row["text"].split() else [])]


def never_coded(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Of 55 training rows in a hundred nobody wrote the labels down."""
    in_all(several)(draw, splits)
    for row in (*splits["train"], *splits["validation"]):
        if draw.random() < 0.55:
            row["label"] = []


def coded(recipe: dict[str, Any]) -> dict[str, Any]:
    """Leave out the rows without labels."""

    def leave_out(rows: Rows) -> None:
        rows[:] = [row for row in rows if row["label"]]

    return changed(changed(recipe, "train", leave_out), "validation", leave_out)


def bare_alike(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Texts of two of the words have no label, in all splits alike."""
    in_all(several)(draw, splits)
    for row in (row for rows in splits.values() for row in rows):
        row["label"] = [name for name in row["label"] if name not in ("film", "match")]


LANGUAGE = by("languages", "language", level="alarm")
SHORTENED = by("shortened-texts", "shortened", level="alarm")
PHRASE = by("telling-phrase", "phrases")
CODE = by("number-targets", "code", level="alarm")
UNLABELLED = by("unlabelled-rows", "share", level="alarm")

TRUTHS: list[Truth] = [
    *runs_of("test in another language", LANGUAGE, "words", spoil=in_italian, fits=OF_TEXTS, usable=True),
    *runs_of("texts of one class are cut in training", SHORTENED, "words news", spoil=in_training(cut_class),
             fits=OF_TEXTS, usable=True),
    *runs_of("all texts are cut in training", SHORTENED, "words news", spoil=in_training(cut_all), fits=OF_TEXTS,
             usable=True),
    *runs_of("the text holds what came of it", PHRASE, "words news", spoil=in_all(outcome_in_text), fits=OF_TEXTS,
             usable=True),
    *runs_of("numbers that are a code for none", CODE, "grades", spoil=in_all(not_recorded), fits=OF_TEXTS,
             mend=recorded),
    *runs_of("half of the training rows were never coded", UNLABELLED, "words", spoil=never_coded, fits=OF_TEXTS,
             usable=True, mend=coded),
    *runs_of("sound, in two languages", ONLY_BETTER, "words", spoil=in_both, usable=True, seeds=6),
    *runs_of("sound, some texts cut", ONLY_BETTER, "words news", spoil=in_training(cut_one_in_ten), usable=True,
             seeds=6),
    *runs_of("sound, rows without labels", kind("quality", "good"), "words", spoil=bare_alike, usable=True, seeds=6),
    *runs_of("sound, some grades are the least", ONLY_BETTER, "grades", spoil=in_all(some_recorded_as_minus_one),
             usable=True, seeds=6),
]  # fmt: skip
