"""The inputs that tasks show, and what stays where others take their place."""

import copy
import random
import string

import pytest

from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM
from ftengine_builtins.tasks.tagged_rows import read_tagged
from ftengine_builtins.tasks.text_classification import TextClassification, TextClassificationConfig
from ftengine_builtins.tasks.token_classification import TokenClassification


def rewritten(task, row, change):
    """Return a row each of whose inputs is changed."""
    return task.with_inputs(row, [change(value) for value in task.view(row).inputs])


SPANS = [{"start": 9, "end": 17, "label": "LOC", "id": 1}, {"start": 0, "end": 2, "label": "PER"}]


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        (TextClassification(), {"text": "a", "label": "b", "x": "c"}, {"text": "A", "label": "b", "x": "c"}),
        (
            TextClassification(TextClassificationConfig(text="q", pair="r")),
            {"q": "a", "r": "b", "label": "c"},
            {"q": "A", "r": "B", "label": "c"},
        ),
        (Seq2SeqLM(), {"prompt": "a", "completion": "b"}, {"prompt": "A", "completion": "b"}),
        (
            CausalLM(),
            {"prompt": "a", "completion": "b", "text": None},
            {"prompt": "A", "completion": "b", "text": None},
        ),
        (CausalLM(), {"text": "a b"}, {"text": "A B"}),
        (TokenClassification(), {"tokens": ["a", "b"], "tags": ["x", "y"]}, {"tokens": ["A", "B"], "tags": ["x", "y"]}),
    ],
)
def test_what_the_model_reads_is_changed_and_what_it_answers_is_not(task, row, expected):
    before = copy.deepcopy(row)
    assert rewritten(task, row, str.upper) == expected
    assert row == before


@pytest.mark.parametrize("change", [lambda w: "", lambda w: " ", lambda w: "a b", lambda w: w + " "])
def test_a_change_that_empties_or_splits_a_word_is_not_made(change):
    row = {"tokens": ["Anna", "sleeps"], "tags": ["B-PER", "O"]}
    kept = rewritten(TokenClassification(), row, change)["tokens"]
    assert [word.strip() for word in kept] == row["tokens"]


def test_spans_follow_their_words():
    row = {"text": "Anna, in New York!", "spans": SPANS}
    changed = rewritten(TokenClassification(), row, lambda word: word * 2 if word.isalpha() else word)
    assert changed["text"] == "AnnaAnna, inin NewNew YorkYork!"
    assert changed["spans"] == [
        {"start": 15, "end": 30, "label": "LOC", "id": 1},
        {"start": 0, "end": 8, "label": "PER"},  # widened to the whole word, as the task does
    ]
    assert row["spans"] == SPANS


@pytest.mark.parametrize("seed", range(60))
def test_no_change_moves_a_tag_to_another_word(seed):
    rng = random.Random(seed)
    row = {"text": "Anna, in New York! 東京 is-far.", "spans": SPANS}
    pieces = [*string.ascii_letters, "", " ", "-", "é", "京", "word", "x\u0301"]
    changed = rewritten(
        TokenClassification(), row, lambda word: "".join(rng.choices([word, *pieces], k=rng.randrange(3)))
    )
    before, after = read_tagged(row, None), read_tagged(changed, None)
    assert after.tags == before.tags
    assert len(after.words) == len(before.words)
