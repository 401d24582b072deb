"""Rewritten copies of short training texts are found in held-out splits; texts of one form are not taken for them."""

import json
import random

import pytest

WORDS = [f"word{i}" for i in range(300)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def free(count, draw, words=9):
    return [{"text": " ".join(draw.choices(WORDS, k=words)), "label": draw.choice("ab")} for _ in range(count)]


def changed(rows, draw, change):
    copies = []
    for row in rows:
        words = row["text"].split()
        at = draw.randrange(len(words))
        if change == "replaced":
            words[at] = "other"
        elif change == "left out":
            del words[at]
        elif change == "added":
            words.insert(at, "other")
        elif change == "moved":
            words.insert(0, words.pop())
        elif change == "two replaced":
            words[:2] = ["quite", "other"]
        copies.append({"text": " ".join(words), "label": row["label"]})
    return copies


@pytest.fixture
def copies(write, label_task, audit):
    """Return what the audit finds, and the sentence about leaks."""

    def copies(train, test, **options):
        files = {"test": write("b.jsonl", lines(test)), "leaks": "warn", **options}
        result = audit(label_task, write("a.jsonl", lines(train)), **files)
        return [one for one in result.findings if one.source == "short-copies"], result

    return copies


@pytest.mark.parametrize("change", ["replaced", "left out", "added", "moved"])
def test_copies_with_one_word_changed_are_an_alarm(copies, change):
    draw = random.Random(0)
    train = free(300, draw)
    (found,), _ = copies(train, changed(train[:80], draw, change) + free(20, draw))
    assert (found.level, found.explains) == ("alarm", ("quality",))
    assert (found.figures["held_out"], found.figures["within_training"]) == (0.8, 0.0)
    assert found.places[0] == "b.jsonl:1"


@pytest.mark.parametrize("change", ["two replaced", "labels"])
def test_texts_that_differ_by_more_are_no_copies(copies, change):
    draw = random.Random(0)
    train = free(300, draw)
    test = changed(train[:80], draw, change if change != "labels" else "replaced")
    if change == "labels":
        test = [row | {"label": "b" if row["label"] == "a" else "a"} for row in test]
    assert copies(train, test)[0] == []
