"""Near duplicates: what is planted is found, what is unrelated is not, and the threshold means what it says."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partly import partly

from ftengine.api import Task, View
from ftengine.data.distinct import Distinct
from ftengine.data.near import bag, find_near, normalised
from ftengine.data.read import read_rows
from ftengine.data.row_hashes import identities
from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection


@partly
class Text(Task):
    name = "text"

    def view(self, row):
        return View([row["text"]])


def near_texts(write, texts, threshold=0.8, name="a.jsonl"):
    """Return the pairs of texts in one group, as indices."""
    rows = read_rows(write(name, "".join(json.dumps({"text": text}) + "\n" for text in texts)))
    distinct = Distinct({"train": rows}, {"train": identities(rows, Text(), 0)}, Text())
    near = find_near(distinct, threshold)
    group = near.groups[distinct.of["train"]]
    return {(i, j) for i, j in combinations(range(len(texts)), 2) if group[i] == group[j]}, near, distinct


def similarity(one: str, other: str) -> float:
    a, b = set(bag(normalised(one))), set(bag(normalised(other)))
    return len(a & b) / len(a | b)


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def sentence(rng: random.Random, words: int) -> list[str]:
    return rng.sample(WORDS, words)


def test_case_punctuation_and_forms_of_characters_make_no_difference(write):
    pairs, near, _ = near_texts(write, ["Yes, of course!", "yes of course", "ＹＥＳ — of course", "no of course"])
    assert pairs == {(0, 1)}  # a dash is a sign, and "no" another word
    assert near.pairs.shape == (1, 2)


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_keys_that_all_rows_have_make_no_near_duplicates(write, written):
    """Cells of a table that hold JSON, or dictionaries as pandas writes them."""
    rng, keys = random.Random(0), [f"key number {i}" for i in range(12)]
    rows = [dict(zip(keys, sentence(rng, 12), strict=True)) for _ in range(12)]
    alike = dict(zip(keys, sentence(rng, 36)[::3], strict=True))
    several = dict(zip(keys, (" ".join(sentence(rng, 3)) for _ in keys), strict=True))
    rows += [several, {**several, keys[0]: "another"}, alike, {**alike, keys[0]: "another"}]
    pairs, near, _ = near_texts(write, [written(row) for row in rows])
    assert pairs == {(12, 13)}  # the last two have 12 words but for the keys
    assert near.boilerplate == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [("What is 3 + 4?", "What is 3 - 4?"), ("great :)", "great :("), ("是的", "不是的"), (":)", ":("), ("!!", "??")],
)
def test_short_texts_that_differ_in_a_word_or_sign_are_no_duplicates(write, one, other):
    assert near_texts(write, [one, other])[0] == set()


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6))
def test_no_pair_below_the_threshold_is_reported_and_hardly_one_above_is_missed(tmp_path_factory, seed):
    rng = random.Random(seed)
    base = [sentence(rng, 30) for _ in range(6)]
    texts = []
    for words in base:
        for changed in (0, 1, 2, 3, 4, 6, 9):
            other = [*words]
            for place in rng.sample(range(30), changed):
                other[place] = rng.choice(WORDS) + "x"
            texts.append(" ".join(other))
    folder = tmp_path_factory.mktemp("near")

    def write(name, content):
        (folder / name).write_text(content)
        return str(folder / name)

    _, near, distinct = near_texts(write, texts)
    text_of = [distinct.text(number) for number in range(len(distinct))]
    assert all(similarity(text_of[a], text_of[b]) >= 0.8 for a, b in near.pairs)
    true = [(a, b) for a, b in combinations(range(len(distinct)), 2) if similarity(text_of[a], text_of[b]) >= 0.8]
    missed = [pair for pair in true if near.groups[pair[0]] != near.groups[pair[1]]]
    assert len(true) >= 20
    assert len(missed) <= 1


FREQUENT = WORDS[:30]


def letters(rng: random.Random, rows: int, word: str) -> list[str]:
    """Return rows of one sentence of mostly frequent words, in which four are a row's own."""
    fixed = [*rng.sample(FREQUENT, 24), *(f"{word}{i}" for i in range(11))]
    rng.shuffle(fixed)
    return [" ".join([*fixed, *(f"{word}{rng.getrandbits(40):x}" for _ in range(4))]) for _ in range(rows)]


def test_variants_of_one_sentence_are_found_where_its_words_are_frequent_elsewhere_too(write):
    """The words are in more than half of the rows, but together only in the sentence's."""
    rng = random.Random(5)
    others = [
        " ".join([*rng.sample(FREQUENT, 12), *(f"o{rng.getrandbits(40):x}" for _ in range(25))]) for _ in range(110)
    ]
    _, near, distinct = near_texts(write, letters(rng, 90, "x") + others)
    groups = near.groups[distinct.of["train"]]
    assert len(set(groups[:90])) == 1
    assert len(set(groups)) == 111
    assert near.shared == 0


@pytest.mark.parametrize("share", [0.3, 0.5, 0.51, 0.7, 1.0])
def test_rows_of_a_few_sentences_are_found_or_reported_whatever_their_share(write, share):
    rng = random.Random(6)
    one = round(200 * share)
    _, near, distinct = near_texts(write, letters(rng, one, "x") + letters(rng, 200 - one, "y"))
    groups = near.groups[distinct.of["train"]]
    found = sum(len(part) - len(set(part)) for part in (groups[:one], groups[one:]))
    assert found + near.boilerplate >= 198


@pytest.mark.parametrize(
    ("labels", "other"), [("aabb", 0), ("abab", 2), ((1.0, 1.01, 5.0, 5.0), 0), ((1.0, 3.0, 5.0, 8.0), 2)]
)
def test_labels_of_near_duplicates_are_compared(write, label_task, labels, other):
    texts = [" ".join(f"word{k}{n}" for n in range(40)) for k in range(2)]
    rows = [{"text": f"{texts[i // 2]} {i}", "label": label} for i, label in enumerate(labels)]
    name = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    facts = make_splits(DataSection(train=name, validation=None), label_task, 0).audited().facts
    assert facts["near_duplicates"]["labels"] == {"pairs": 2, "other": other}
