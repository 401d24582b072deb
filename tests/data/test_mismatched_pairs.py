"""Audit `mismatched-pairs`: positives that do not belong to their anchors."""

import json
import random

import pytest

from ftengine_builtins.tasks.embedding import Embedding


def paraphrases(count, seed=0, shared=4):
    """Return pairs of six words of 200, some of which both have."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = [f"w{i}" for i in draw.sample(range(200), 12 - shared)]
        anchor, positive = words[:6], words[6 - shared :]
        pairs.append([" ".join(draw.sample(part, 6)) for part in (anchor, positive)])
    return pairs


def moved(pairs, how, seed=0):
    anchors, positives = (list(column) for column in zip(*pairs, strict=True))
    if how == "sorted":
        positives.sort()
    elif how == "best":
        random.Random(seed).shuffle(positives)
    elif how == "offset":
        positives = positives[2:] + positives[:2]
    return list(zip(anchors, positives, strict=True))


def of_two_languages(count, seed=0):
    """Return pairs without a word that both have, as of a text and its translation."""
    return [(a, " ".join(f"x{word}" for word in b.split())) for a, b in paraphrases(count, seed)]


@pytest.fixture
def found(write, audit):
    def found(train, test=None):
        options = {}
        for name, pairs in (("train", train), ("test", test or [])):
            lines = [json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in pairs]
            options |= {name: write(f"{name}.jsonl", "".join(lines))} if lines else {}
        return list(audit(Embedding(), options.pop("train"), only="mismatched-pairs", **options).findings)

    return found


@pytest.mark.parametrize("how", ["sorted", "best", "offset"])
def test_positives_of_other_rows_are_an_alarm(found, how):
    [one] = found(moved(paraphrases(200), how), paraphrases(60, 1))
    assert (one.level, one.figures["split"], one.figures["ordered"]) == (
        "alarm",
        "train",
        "positives" if how == "sorted" else "",
    )
    assert one.figures["found"] == ("offset" if how == "offset" else "best")
    if how == "offset":
        assert one.figures["offset"] == -2
    [one] = found(paraphrases(200), moved(paraphrases(60, 1), how))
    assert one.figures["split"] == "test"


def test_a_held_out_split_shows_that_pairs_do_not_match(found):
    """Positives that are of other anchors altogether have no better match."""
    anchors, positives = paraphrases(150, 2, shared=2), paraphrases(150, 3, shared=2)
    pairs = [(a, b) for (a, _), (_, b) in zip(anchors, positives, strict=True)]
    [one] = found(pairs, paraphrases(80, 4, shared=2))
    assert (one.level, one.figures["found"]) == ("alarm", "match")
    assert not found(pairs)


def test_a_file_that_is_sorted_by_a_column_is_no_alarm(found):
    """Pairs that share a word by chance, as of a text and its translation, may stand in the order of one of them."""
    pairs = [(f"{a} k{i % 7}", f"{b} k{i % 5}") for i, (a, b) in enumerate(of_two_languages(200))]
    [one] = found(sorted(pairs, key=lambda pair: pair[1]))
    assert (one.level, one.figures["ordered"]) == ("note", "positives")
    assert not found(pairs)


@pytest.mark.parametrize("pairs", [paraphrases, of_two_languages, lambda n: sorted(paraphrases(n))])
def test_pairs_that_belong_together_are_no_finding(found, pairs):
    assert found(pairs(150)) == []
