"""Truths about rows in which errors lie: of one site, one device, a word, or after a date.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from verdicts_truths import OF_USE, ONLY_BETTER, Rows, runs_of

from ftengine.api import Finding

OF_GROUPS = (*OF_USE, "labels", "over-fitting", "data", "splits", "worse")
FIRST_DAY_OF_OTHERS = 210


def groups_named_by(word: str) -> Callable[[Finding], bool]:
    """Return whether a finding is an alarm about a group, or about a column, that is called so."""
    return lambda finding: finding.level == "alarm" and word in finding.text


def sites(draw: random.Random, splits: dict[str, Rows]) -> None:
    """One of four sites labels its test rows by a list of classes that moved by one."""
    for name, rows in splits.items():
        labels = sorted({row["label"] for row in splits["train"]})
        for row in rows:
            row["site"] = draw.choice(["Bern", "Graz", "Linz", "Wien"])
            if name == "test" and row["site"] == "Wien":
                row["label"] = labels[(labels.index(row["label"]) + 1) % len(labels)]


def dated(draw: random.Random, splits: dict[str, Rows]) -> None:
    """From a day on, test rows have labels of any class."""
    for name, rows in splits.items():
        labels = sorted({row["label"] for row in splits["train"]})
        for row in rows:
            day = draw.randrange(300)
            row["written"] = f"2024-{1 + day // 28:02}-{1 + day % 28:02}"
            if name == "test" and day >= FIRST_DAY_OF_OTHERS:
                row["label"] = draw.choice([label for label in labels if label != row["label"]])


def reversed_by_a_word(draw: random.Random, splits: dict[str, Rows]) -> None:
    """A word that a fifth of all texts have stands for the next class, in test alone."""
    for name, rows in splits.items():
        labels = sorted({row["label"] for row in splits["train"]})
        for row in rows:
            if draw.random() < 0.2:
                row["text"] += " however"
                if name == "test":
                    row["label"] = labels[(labels.index(row["label"]) + 1) % len(labels)]


def devices(draw: random.Random, splits: dict[str, Rows]) -> None:
    """One of four devices shows too much in the test rows."""
    for name, rows in splits.items():
        for row in rows:
            row["device"] = draw.choice(["A1", "A2", "B1", "B2"])
            if name == "test" and row["device"] == "B2":
                row["label"] += 6.0


def harmless(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Sites, days and devices that say nothing."""
    for rows in splits.values():
        for row in rows:
            row |= {"site": draw.choice(["Bern", "Graz", "Wien"]), "device": draw.randrange(400)}
            row["written"] = f"2024-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"


TRUTHS = [
    *runs_of("a site with other labels in test", groups_named_by("site"), "words news", spoil=sites, fits=OF_GROUPS,
             usable=True),
    *runs_of("other labels from a day on", groups_named_by("written"), "words news", spoil=dated, fits=OF_GROUPS,
             usable=True),
    *runs_of("a word that reverses labels in test", groups_named_by("however"), "words news",
             spoil=reversed_by_a_word, fits=OF_GROUPS, usable=True),
    *runs_of("a device that shows too much", groups_named_by("device"), "grades", spoil=devices, fits=OF_GROUPS,
             usable=True),
    *runs_of("sound, sites and days", ONLY_BETTER, "words grades news", spoil=harmless, usable=True),
]  # fmt: skip
