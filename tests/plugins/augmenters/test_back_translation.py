"""Back-translation by a tiny encoder-decoder: what is translated, what stays, what is refused before anything runs."""

import random
import shutil

import pytest
import torch
from expected import raises
from pydantic import ValidationError
from tiny import tiny_bert, tiny_t5

from ftengine.errors import SourceError
from ftengine_builtins.augmenters.back_translation import BackTranslation
from ftengine_builtins.augmenters.translator import Translator
from ftengine_builtins.tasks.text_classification import TextClassification

TEXT = "The film was good. It was long!\n\n  Who was in it?"


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("t5") / "model")


def made(forward, backward=None, **options):
    settings = {"max_length": 12, "device": "cpu", "forward": str(forward), "backward": str(backward or forward)}
    augmenter = BackTranslation(BackTranslation.Config(**settings | options))
    augmenter.check_options()
    return augmenter


@pytest.mark.slow
def test_a_text_and_a_variant_give_one_translation_in_every_object(t5):
    texts = [made(t5).change(TEXT, random.Random(seed)) for seed in (1, 1, 2, 3, 4, 5, 6)]
    assert texts[0] == texts[1] != TEXT
    assert 2 <= len(set(texts)) <= 4  # as many as variants


def test_a_repeated_call_takes_the_translation_out_of_memory(t5, monkeypatch):
    augmenter, calls = made(t5, variants=1), []
    call = Translator.__call__
    monkeypatch.setattr(Translator, "__call__", lambda self, *args: calls.append(1) or call(self, *args))
    first = augmenter.change(TEXT, random.Random(0))
    assert augmenter.change(TEXT, random.Random(7)) == first
    assert len(calls) == 2  # there and back, once


def test_the_random_numbers_of_the_run_stay_as_they_are(t5):
    before = torch.get_rng_state()
    made(t5).change(TEXT, random.Random(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_blanks_between_sentences_stay_and_each_is_translated_by_itself(t5, monkeypatch):
    asked = []

    def upper(self, sentences):
        asked.extend(sentences)
        return [sentence.upper() for sentence in sentences]

    monkeypatch.setattr(Translator, "_translate", upper)
    assert made(t5, max_length=64).change(TEXT, random.Random(0)) == TEXT.upper()
    assert asked[:3] == ["The film was good.", "It was long!", "Who was in it?"]


def test_a_sentence_that_is_too_long_is_cut_at_blanks_and_never_handed_over(t5, monkeypatch):
    lengths = []

    def measured(self, sentences):
        lengths.extend(len(self._ids(sentence)) for sentence in sentences)
        return [""] * len(sentences)

    monkeypatch.setattr(Translator, "_translate", measured)
    text = "the dog does not mind at all and " * 20 + "x" * 100
    row = {"text": text}
    (changed,) = made(t5, probability=1).augment(row, TextClassification(), random.Random(0))
    assert changed == row  # empty translations change nothing
    assert len(lengths) > 10
    assert max(lengths) <= 12


def test_a_beam_search_has_one_result_whatever_the_random_numbers(t5):
    augmenter = made(t5, temperature=0, beams=2)
    assert len({augmenter.change(TEXT, random.Random(seed)) for seed in range(5)}) == 1


def test_what_cannot_translate_is_refused_by_option(t5, tmp_path):
    shutil.copytree(t5, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    bert = tiny_bert(tmp_path / "bert")
    for options, message in [
        ((tmp_path / "nowhere", t5), "option forward: "),
        ((t5, tmp_path / "empty"), "empty"),
        ((t5, bert), "bert"),
    ]:
        with raises(SourceError, "'back-translation'", message):
            made(*options)


def test_beams_and_drawing_exclude_each_other():
    with raises(ValidationError, "temperature: 0"):
        BackTranslation.Config(forward="a", backward="b", beams=4)
