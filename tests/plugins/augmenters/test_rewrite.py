"""The inputs that tasks show, and what stays where others take their place."""

import copy
import random
import string

import numpy as np
import pytest
from PIL import Image
from tiny import image_processor

from ftengine.errors import DataError
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.image_classification import ImageClassification
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


def test_of_a_conversation_all_but_the_assistant_is_changed():
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "and you?"), ("assistant", "fine")]
    row = {"messages": [{"role": role, "content": content, "id": i} for i, (role, content) in enumerate(turns)]}
    before = copy.deepcopy(row)
    changed = rewritten(CausalLM(), row, str.upper)["messages"]
    assert [m["content"] for m in changed] == ["BE KIND", "HI", "hello", "AND YOU?", "fine"]
    assert [m["id"] for m in changed] == list(range(5))
    assert row == before


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (TextClassification(), {"text": " ", "label": "a"}),
        (CausalLM(), {"messages": []}),
        (Seq2SeqLM(), {"prompt": None, "completion": "x"}),
        (TokenClassification(), {"tokens": [], "tags": []}),
        (ImageClassification(), {"image": "nowhere.png"}),
    ],
)
def test_a_row_that_cannot_be_read_is_said_to_be_so(task, row):
    with pytest.raises(DataError):
        rewritten(task, row, lambda value: value)


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


def test_an_image_is_an_input_and_another_takes_its_place(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    task = ImageClassification()
    task.labels = task.learn_labels({"train": [{"image": "x", "label": "a"}, {"image": "y", "label": "b"}]})
    row = {"image": str(tmp_path / "a.jpg"), "label": "a"}
    seen = []
    same = rewritten(task, row, lambda image: seen.append(image) or image)
    assert (seen[0].size, seen[0].mode) == ((30, 40), "RGB")
    assert row["image"] == str(tmp_path / "a.jpg")
    plain, again = (task.encode(x, image_processor()).inputs["pixel_values"] for x in (row, same))
    assert plain.equal(again)
    black = rewritten(task, row, lambda image: Image.new("L", (9, 9)))
    assert task.encode(black, image_processor()).inputs["pixel_values"].unique().numel() == 1
    assert task.modality == "image"
