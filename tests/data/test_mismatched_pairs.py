"""Audit `mismatched-pairs`: positives and answers that do not belong to their rows."""

import json
import random
from itertools import pairwise

import pytest

from ftengine_builtins.tasks.embedding import Embedding, EmbeddingConfig
from ftengine_builtins.tasks.preference import Preference
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM


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
    others = [b for _, b in of_two_languages(200, 1)]
    pairs = [(f"{a} k{i % 7}", f"{others[i]} k{i % 5}") for i, (a, _) in enumerate(of_two_languages(200))]
    [one] = found(sorted(pairs, key=lambda pair: pair[1]))
    assert (one.level, one.figures["ordered"]) == ("note", "positives")
    assert not found(pairs)


SUBJECTS = {
    "battery": "charge it overnight", "screen": "wipe the glass", "fan": "blow the dust out", "cable": "plug it in",
    "account": "ask for a code",
}  # fmt: skip


def answered(count, seed=0):
    """Return prompts and answers that share no word: what is asked about decides what is said, some of it always."""
    draw, rows = random.Random(seed), []
    for i in range(count):
        subject = draw.choice([*SUBJECTS])
        prompt = f"my {draw.choice(['old', 'new', 'red'])} {subject} fails again {i}"
        rows.append((prompt, f"first {SUBJECTS[subject]} {draw.choice(['then wait', 'and write', 'now'])}"))
    return rows


@pytest.fixture
def found_in_answers(write, audit):
    def found(train, test, names=("prompt", "completion"), task=None):
        files = []
        for name, rows in (("train", train), ("test", test)):
            lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows]
            files.append(write(f"{name}.jsonl", "".join(lines)))
        return list(audit(task or Seq2SeqLM(), files[0], test=files[1], leaks="warn", only="mismatched-pairs").findings)

    return found


def test_answers_of_the_row_before_are_an_alarm(found_in_answers):
    train, test = answered(200), answered(60, 1)
    prompts, answers = zip(*train, strict=True)
    slipped = [*zip(prompts, answers[-1:] + answers[:-1], strict=True)]
    (one,) = found_in_answers(slipped, test)
    assert (one.level, one.figures["split"], one.figures["alike_offset"]) == ("alarm", "train", 1)
    assert found_in_answers(train, test) == []
    by_subject = sorted(train, key=lambda row: row[0].split()[2])  # so that neighbours fit as well
    assert found_in_answers(by_subject, test) == []


def test_turns_that_go_on_from_the_row_before_are_none(found_in_answers):
    turns = [f"{anchor} {positive}" for anchor, positive in paraphrases(200)]
    assert found_in_answers([*pairwise(turns)], answered(60, 1)) == []


def test_rejected_answers_to_other_prompts_are_found(found_in_answers):
    names = ("prompt", "chosen", "rejected")
    rows = [(p, f"{a} .", f"{a} or not") for p, a in answered(260)]
    others = [(p, a, rows[(i + 87) % len(rows)][2]) for i, (p, a, _) in enumerate(rows)]
    assert found_in_answers(rows[:200], rows[200:], names, Preference()) == []
    (one,) = found_in_answers(others[:200], rows[200:], names, Preference())
    assert (one.level, one.figures["what"], one.figures["found"]) == ("alarm", "rejected answers", "match")
    assert {one.level for one in found_in_answers(others[:200], others[200:], names, Preference())} == {"note"}


@pytest.mark.parametrize("pairs", [paraphrases, of_two_languages, lambda n: sorted(paraphrases(n))])
def test_pairs_that_belong_together_are_no_finding(found, pairs):
    assert found(pairs(150)) == []


@pytest.mark.parametrize(("equal", "level"), [(0, None), (3, "note"), (40, "alarm")])
def test_negatives_that_are_their_positives_are_found(write, audit, equal, level):
    rows = [{"anchor": a, "positive": b, "negative": b if i < equal else f"x {a}"}
            for i, (a, b) in enumerate(paraphrases(100))]  # fmt: skip
    name = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = Embedding(EmbeddingConfig(rows="triplets"))
    findings = audit(task, name, only="equal-answers").findings
    assert [(one.level, one.figures["equal"]) for one in findings] == ([(level, equal)] if level else [])
