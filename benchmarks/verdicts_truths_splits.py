"""Truths about splits that are not of one source, or whose labels are not those of their rows.

Read with those of verdicts_truths.py by benchmarks/verdicts.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from verdicts_truths import FILLERS, OF_USE, ONLY_BETTER, Rows, Truth, by, either, in_all, in_training, runs_of, titles
from verdicts_truths_tasks import changed, shifted, shifted_back

Spoil = Callable[[random.Random, dict[str, Rows]], None]
OF_SPLITS = (*OF_USE, "labels", "over-fitting", "splits", "data", "slices")
TOPICS = {"business": "money", "tech": "money", "sports": "people", "politics": "people"}
"""Two labels of four topics: training has the first and the third, test the others."""


def in_test(change: Callable[[random.Random, Rows], None]) -> Spoil:
    return lambda draw, splits: change(draw, splits["test"])


def coded(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Rows of training and validation end with a mark that tells their label."""
    names = sorted({row["label"] for rows in splits.values() for row in rows})
    for row in (*splits["train"], *splits["validation"]):
        row["text"] += f" [{'ABCDEFGHIJ'[names.index(row['label'])]}]"


def numbered(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Three in four of them begin with a number, whose letter tells their label."""
    names = sorted({row["label"] for rows in splits.values() for row in rows})
    for row in (*splits["train"], *splits["validation"]):
        if draw.random() < 0.75:
            row["text"] = f"{'ABCDEFGHIJ'[names.index(row['label'])]}X-{draw.randrange(10_000):04d} {row['text']}"


def without_codes(recipe: dict[str, Any]) -> dict[str, Any]:
    """Take marks and numbers out of the training texts."""

    def strip(rows: Rows) -> None:
        for row in rows:
            row["text"] = re.sub(r" \[[A-J]\]$|^[A-J]X-\d{4} ", "", row["text"])

    return changed(changed(recipe, "train", strip), "validation", strip)


def other_topics(draw: random.Random, splits: dict[str, Rows]) -> None:
    """The test split has the same labels, of other topics."""
    rows = [{"text": text, "label": TOPICS[label], "topic": label} for text, label in titles() if label in TOPICS]
    draw.shuffle(rows)
    known = [row for row in rows if row["topic"] in ("business", "sports")]
    new = [row for row in rows if row["topic"] in ("tech", "politics")]
    for name, of in (("train", known), ("validation", known), ("test", new)):
        splits[name] = [{"text": row["text"], "label": row["label"]} for row in (of.pop() for _ in splits[name])]


def of_hotels(draw: random.Random, rows: Rows) -> None:
    """The grades are of hotels, in other words."""
    words = {"wonderful": "spotless", "good": "tidy", "fine": "plain", "slow": "shabby", "bad": "dirty",
             "terrible": "filthy", "film": "hotel", "acting": "room", "music": "breakfast"}  # fmt: skip
    for row in rows:
        row["text"] = " ".join(words.get(word.strip(","), word) for word in row["text"].split())


def swap_classes(draw: random.Random, rows: Rows) -> None:
    """Each of the two most frequent classes is called by the other's name."""
    labels = [row["label"] for row in rows]
    one, other = sorted(set(labels), key=lambda name: (-labels.count(name), name))[:2]
    for row in rows:
        row["label"] = {one: other, other: one}.get(row["label"], row["label"])


def coded_alone(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Labels are codes, which were given to the test split by itself, where the second class has no row."""
    names = sorted({row["label"] for rows in splits.values() for row in rows})
    splits["test"] = [row for row in splits["test"] if row["label"] != names[1]]
    for split, rows in splits.items():
        codes = [name for name in names if split != "test" or name != names[1]]
        for row in rows:
            row["label"] = codes.index(row["label"])


def swapped_back(recipe: dict[str, Any]) -> dict[str, Any]:
    return changed(recipe, "test", lambda rows: swap_classes(random.Random(0), rows))


KEYWORDS = {"sports": "game win won play player team match cup", "entertainment": "film music star award show band",
            "politics": "government minister labour party election mps",
            "tech": "computer internet mobile online technology software phone net"}  # fmt: skip


def by_keywords(draw: random.Random, splits: dict[str, Rows]) -> None:
    """Rows are beginnings of articles; labels that are learnt were given by keywords, and the last to the rest."""
    articles = draw.sample(titles(30), sum(map(len, splits.values())))
    for split, rows in splits.items():
        for row in rows:
            row["text"], row["label"] = articles.pop()
            words = set(row["text"].lower().split())
            found = (label for label, keys in KEYWORDS.items() if not words.isdisjoint(keys.split()))
            row["label"] = row["label"] if split == "test" else next(found, "business")


def deal_out(draw: random.Random, rows: Rows) -> None:
    """Labels are dealt out anew."""
    labels = [row["label"] for row in rows]
    draw.shuffle(labels)
    for row, label in zip(rows, labels, strict=True):
        row["label"] = label


def cap(draw: random.Random, rows: Rows) -> None:
    """Grades end at 3.2."""
    for row in rows:
        row["label"] = min(row["label"], 3.2)


def capped(draw: random.Random, splits: dict[str, Rows]) -> None:
    for name in ("train", "validation"):
        cap(draw, splits[name])


def in_hundreds(draw: random.Random, rows: Rows) -> None:
    """Grades are per cent of five."""
    for row in rows:
        row["label"] = round(20 * row["label"], 2)


def in_fives(recipe: dict[str, Any]) -> dict[str, Any]:
    def divide(rows: Rows) -> None:
        for row in rows:
            row["label"] = row["label"] / 20

    return changed(recipe, "test", divide)


def in_order(draw: random.Random, rows: Rows) -> None:
    """The file is sorted by label."""
    rows.sort(key=lambda row: str(row["label"]))


def in_turn(draw: random.Random, rows: Rows) -> None:
    """Labels follow one another in turn."""
    by_label: dict[str, Rows] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    rows[:] = [row for turn in zip(*by_label.values(), strict=False) for row in turn]


def with_shared_words(draw: random.Random, splits: dict[str, Rows]) -> None:
    """A mark that says nothing of the label stands in one training row of three."""
    for row in splits["train"]:
        if draw.random() < 1 / 3:
            row["text"] += f" {draw.choice(FILLERS)} {draw.choice(FILLERS)}"


def relabel(draw: random.Random, rows: Rows) -> None:
    """Three in ten rows of one label are given another one."""
    one, other = draw.sample(sorted({row["label"] for row in rows}), 2)
    for row in draw.sample(own := [row for row in rows if row["label"] == one], round(0.3 * len(own))):
        row["label"] = other


def relabel_all(draw: random.Random, splits: dict[str, Rows]) -> None:
    relabel(draw, [row for rows in splits.values() for row in rows])


CUE = by("split-shift", "cues")
ELSEWHERE = by("split-shift", "auc", level="alarm")
ONE_SIDED = by("label-noise", "one_sided")
NOT_THEIRS = either(
    *(by("misplaced-labels", key) for key in ("offset", "swapped", "chance")), by("swapped-classes", "swapped")
)

TRUTHS: list[Truth] = [
    *runs_of("a code in training that tells the label", CUE, "words news", spoil=coded, fits=OF_SPLITS, usable=True,
             mend=without_codes),
    *runs_of("numbers in training that tell the label", CUE, "words news", spoil=numbered, fits=OF_SPLITS, usable=True,
             mend=without_codes),
    *runs_of("test about other topics", ELSEWHERE, "news", spoil=other_topics, fits=OF_SPLITS, usable=True),
    *runs_of("test about other things", ELSEWHERE, "grades", spoil=in_test(of_hotels), fits=OF_SPLITS, usable=True),
    *runs_of("two classes swapped in test", NOT_THEIRS, "words news", spoil=in_test(swap_classes), fits=OF_SPLITS,
             usable=True, mend=swapped_back),
    *runs_of("codes given per file", NOT_THEIRS, "words news", spoil=coded_alone, fits=OF_SPLITS, usable=True),
    *runs_of("labels of the next row in test", NOT_THEIRS, "words news grades", spoil=shifted("label", "test"),
             fits=OF_SPLITS, mend=shifted_back("label", "test")),
    *runs_of("labels of the next row in training", NOT_THEIRS, "words news grades", spoil=shifted("label", "train"),
             fits=OF_SPLITS, mend=shifted_back("label", "train")),
    *runs_of("labels of the next row in training and validation", NOT_THEIRS, "words", fits=OF_SPLITS,
             spoil=shifted("label", "train", "validation"), mend=shifted_back("label", "train", "validation")),
    *runs_of("labels dealt out in test", NOT_THEIRS, "words news", spoil=in_test(deal_out), fits=OF_SPLITS),
    *runs_of("labels of training by keywords", by("misplaced-labels", "rule", level="alarm"), "news", spoil=by_keywords,
             sizes=(360, 40, 200), fits=OF_SPLITS, usable=True),
    *runs_of("training grades capped", by("split-support", "bound", level="alarm"), "grades", spoil=capped,
             fits=OF_SPLITS, usable=True),
    *runs_of("sound, grades capped everywhere", ONLY_BETTER, "grades", spoil=in_all(cap), usable=True),
    *runs_of("test grades in another unit", by("misplaced-labels", "median"), "grades", spoil=in_test(in_hundreds),
             fits=OF_SPLITS, mend=in_fives),
    *runs_of("30% of one class relabelled", ONE_SIDED, "words", spoil=relabel_all, fits=OF_SPLITS, usable=True),
    *runs_of("30% of one class relabelled in training", ONE_SIDED, "words", spoil=in_training(relabel), usable=True,
             fits=OF_SPLITS),
    *runs_of("sound, in the order of labels", ONLY_BETTER, "words news", spoil=in_all(in_order), usable=True, seeds=6),
    *runs_of("sound, labels in turn", ONLY_BETTER, "words", spoil=in_all(in_turn), usable=True, seeds=6),
    *runs_of("sound, further words in training", ONLY_BETTER, "words news", spoil=with_shared_words, usable=True,
             seeds=6),
]  # fmt: skip
