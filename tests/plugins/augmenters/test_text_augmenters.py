"""What text augmenters do to texts: as much as asked for, the same every time, nothing torn apart, never all of it."""

import random

import pytest
from expected import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from ftengine.errors import RecipeError
from ftengine.text import comparable
from ftengine_builtins.augmenters.characters import (
    LAYOUTS,
    Keyboard,
    Ocr,
    is_tied,
    neighbours,
)
from ftengine_builtins.augmenters.mask_spans import MaskSpans
from ftengine_builtins.augmenters.synonyms import Synonyms
from ftengine_builtins.augmenters.words import (
    MARKS,
    Case,
    DeleteWords,
    Punctuation,
    SwapWords,
)
from ftengine_builtins.tasks.text_classification import TextClassification, TextClassificationConfig

SENTENCE = "Shares rose after the company said that its profits had grown by 12 per cent this year."
UNICODE = "cafe\u0301 👩‍👩‍👧 👍🏽 1\ufe0f\u20e3 שלום עולם नमस्ते 日本語 ok\u0301"


def augmented(augmenter, text, seed):
    """Return the text of a row, augmented."""
    (row,) = augmenter.augment({"text": text, "label": "a"}, TextClassification(), random.Random(seed))
    return row["text"]


@pytest.fixture(scope="module")
def word_list(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "words.csv"
    file.write_text("profits,earnings\nper cent,percent\nok,fine\ncompany,firm,business\n")
    return file


@pytest.fixture(scope="module")
def everything(word_list):
    """Every augmenter of text that needs no model, as strong as it gets."""
    return [
        Keyboard(Keyboard.Config(rate=1)),
        Ocr(Ocr.Config(rate=1)),
        DeleteWords(DeleteWords.Config(rate=1)),
        SwapWords(SwapWords.Config(rate=1)),
        Case(Case.Config(probability=1)),
        Punctuation(Punctuation.Config(insert=1, drop=1)),
        Punctuation(Punctuation.Config(insert=0, drop=1)),
        MaskSpans(MaskSpans.Config(mask="[MASK]", rate=1)),
        MaskSpans(MaskSpans.Config(mask="_", rate=1, masks="word")),
        Synonyms(Synonyms.Config(file=str(word_list), rate=1)),
    ]


def within(count, trials, rate, deviations=4.5):
    """Whether a count is one that a binomial distribution gives in all but about one of 100,000 cases."""
    return abs(count - trials * rate) <= deviations * (trials * rate * (1 - rate)) ** 0.5


# What holds for all of them


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1).filter(lambda text: comparable(text).strip()), seed=st.integers(0, 2**32))
def test_no_text_is_emptied_and_the_same_numbers_give_the_same_text(everything, text, seed):
    for augmenter in everything:
        changed = augmented(augmenter, text, seed)
        assert changed.strip(), augmenter.name
        assert augmented(augmenter, text, seed) == changed


@pytest.mark.parametrize("seed", range(10))
def test_no_accent_or_emoji_is_torn_from_what_it_belongs_to(everything, seed):
    pairs = {UNICODE[i - 1 : i + 1] for i, c in enumerate(UNICODE) if is_tied(c)}
    for augmenter in everything:
        changed = augmenter.change(UNICODE, random.Random(seed))
        found = {changed[i - 1 : i + 1] for i, c in enumerate(changed) if is_tied(c)}
        # Letters of either case may carry an accent; otherwise every tied character follows what it followed.
        assert {pair.casefold() for pair in found} <= {pair.casefold() for pair in pairs}, augmenter.name


def test_labels_and_other_columns_stay_and_the_row_is_not_touched(everything, word_list):
    row = {"text": SENTENCE, "other": SENTENCE, "label": "a", "id": 7}
    before = dict(row)
    task = TextClassification(TextClassificationConfig(pair="other"))
    for augmenter in everything:
        (changed,) = augmenter.augment(row, task, random.Random(0))
        assert row == before
        assert changed["text"] != SENTENCE
        assert changed["other"] != SENTENCE
        assert (changed["label"], changed["id"]) == ("a", 7)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_as_many_examples_are_changed_as_asked_for(probability):
    augmenter = Case(Case.Config(probability=probability, styles=["upper"]))
    changed = sum(augmented(augmenter, "low", seed) == "LOW" for seed in range(2000))
    assert within(changed, 2000, probability)


# keyboard


def test_neighbours_are_those_of_the_keyboard():
    near = neighbours("qwerty")
    assert set(near["g"]) == set("tyfhvb")
    assert set(near["A"]) == set("QWSZ")
    assert "z" in neighbours("qwertz")["t"]
    for layout, rows in LAYOUTS.items():
        found = neighbours(layout)
        assert all(a in found[b] for a in "".join(rows) for b in found[a])


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_as_many_letters_are_replaced_as_asked_for_and_by_neighbours(rate):
    text = SENTENCE * 60
    changed = Keyboard(Keyboard.Config(rate=rate, kinds=["replace"])).change(text, random.Random(1))
    near = neighbours("qwerty")
    hits = [(a, b) for a, b in zip(text, changed, strict=True) if a != b]
    assert all(b in near[a] for a, b in hits)
    assert within(len(hits), sum(c in near for c in text), rate)


# ocr


# words


def test_as_many_words_are_left_out_as_asked_for_in_their_order():
    words = [f"w{i}" for i in range(4000)]
    changed = DeleteWords(DeleteWords.Config(rate=0.15)).change(" ".join(words), random.Random(3)).split(" ")
    assert within(4000 - len(changed), 4000, 0.15)
    assert changed == sorted(changed, key=lambda word: int(word[1:]))
    assert set(changed) <= set(words)


def test_swaps_reach_no_farther_than_allowed():
    words = [str(i) for i in range(50)]
    for seed in range(30):
        changed = (
            SwapWords(SwapWords.Config(rate=0.02, distance=2)).change(" ".join(words), random.Random(seed)).split()
        )
        moved = [abs(i - int(word)) for i, word in enumerate(changed) if int(word) != i]
        assert len(moved) == 2
        assert max(moved) <= 2


@pytest.mark.parametrize("masks", ["span", "word"])
def test_as_many_words_are_masked_as_asked_for(masks):
    words = [f"w{i}" for i in range(60)]
    augmenter = MaskSpans(MaskSpans.Config(mask="_", rate=0.155, masks=masks))
    hidden, spans = 0, 0
    for seed in range(300):
        changed = augmenter.change(" ".join(words), random.Random(seed)).split()
        kept = [word for word in changed if word != "_"]
        assert kept == [word for word in words if word in set(kept)]
        hidden += 60 - len(kept)
        spans += changed.count("_")
    assert abs(hidden / 300 - 0.155 * 60) < 0.12  # 9 or 10 words: a standard error of 0.03
    assert spans == hidden if masks == "word" else 2 < hidden / spans < 3.5


def test_the_mask_is_the_tokenizers_unless_one_is_named(bert_folder, llama_folder):
    from transformers import AutoTokenizer

    augmenter = MaskSpans(MaskSpans.Config(rate=1))
    augmenter.set_processor(AutoTokenizer.from_pretrained(bert_folder))
    assert "[MASK]" in augmenter.change("one two three", random.Random(0))
    with raises(RecipeError, "mask-spans"):
        augmenter.set_processor(AutoTokenizer.from_pretrained(llama_folder))
    named = MaskSpans(MaskSpans.Config(rate=1, mask="<gap>"))
    named.set_processor(AutoTokenizer.from_pretrained(llama_folder))
    assert "<gap>" in named.change("one two three", random.Random(0))


# case and punctuation


def test_marks_are_put_between_words_in_the_number_of_the_paper():
    words = SENTENCE.split()
    counts = []
    for seed in range(400):
        changed = Punctuation().change(SENTENCE, random.Random(seed)).split()
        assert [word for word in changed if word not in MARKS] == words
        counts.append(len(changed) - len(words))
    assert set(counts) == set(range(1, 1 + int(0.3 * len(words))))
