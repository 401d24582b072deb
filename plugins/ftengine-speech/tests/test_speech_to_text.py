"""The task speech-to-text on tiny models: labels, loss, gradients and transcripts equal transformers' own."""

import copy

import numpy as np
import pytest
import torch
from audio_files import encoded, spoken_rows, tiny_moonshine, tiny_whisper, tone, whisper_tokenizer
from expected import raises

from ftengine.api import LoadedModel
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.model import Criterion, TokenLoss
from ftengine.testing import check_task
from ftengine_speech import SpeechToText
from ftengine_speech.whisper import is_multilingual, language_code


def task(**options):
    return SpeechToText(SpeechToText.Config(**{"max_seconds": 2.0, **options}))


@pytest.fixture(scope="module")
def multilingual():
    return tiny_whisper()


@pytest.fixture(scope="module")
def english():
    return tiny_whisper(multilingual=False)


def loaded(made):
    module, processor = made
    return LoadedModel(copy.deepcopy(module), processor, "tiny", "speech-seq2seq", max_length=64)


@pytest.mark.parametrize(
    "options", [{"language": "en"}, {"language": "german"}, {"language": "de", "writes": "translate"}]
)
def test_labels_are_those_of_transformers_with_generates_prompt(multilingual, options):
    """Processor, tokenizer and generate agree on language, task and no timestamps."""
    module, processor = multilingual
    own = task(**options).encode(spoken_rows(1)[0], processor).inputs["labels"]
    theirs = copy.deepcopy(processor.tokenizer)
    theirs.set_prefix_tokens(language=options["language"], task=options.get("writes", "transcribe"))
    expected = theirs("a cat").input_ids
    start = module.config.decoder_start_token_id
    assert [start, *own] == expected
    features = processor(tone(0.5), sampling_rate=16_000, return_tensors="pt").input_features
    code = language_code(options["language"], processor.tokenizer)
    init = module._retrieve_init_tokens(
        features, 1, _settings(module, code, options.get("writes", "transcribe")), module.config, 200, {}
    )
    assert init[0].tolist() == expected[:4]


def _settings(module, language, writes):
    settings = copy.deepcopy(module.generation_config)
    settings.language, settings.task, settings.return_timestamps = language, writes, False
    return settings


def test_an_english_model_gets_no_language_and_task_tokens(english):
    _, processor = english
    assert not is_multilingual(processor.tokenizer)
    labels = task().encode(spoken_rows(1)[0], processor).inputs["labels"]
    assert [*processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>"]), *labels] == processor.tokenizer(
        "a cat"
    ).input_ids


def test_loss_and_gradients_are_those_of_seq2seqtrainers_model_and_collator(multilingual):
    """The recipe's data collator: pad labels with -100, and take the start token away."""
    module, processor = multilingual
    rows, own = spoken_rows(4), task(language="en")
    batch = own.collate([own.encode(row, processor) for row in rows], processor)
    ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    total, weight = own.loss(ours, batch, Criterion())
    (total / weight).backward()

    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.set_prefix_tokens(language="en", task="transcribe")
    waves = [own.read_input(row, 16_000).samples for row in rows]
    features = processor.feature_extractor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    padded = tokenizer.pad({"input_ids": [tokenizer(row["text"]).input_ids for row in rows]}, return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"].ne(1), -100)
    assert (labels[:, 0] == module.config.decoder_start_token_id).all()
    output = theirs(input_features=features, labels=labels[:, 1:])
    output.loss.backward()
    torch.testing.assert_close(total / weight, output.loss, rtol=1e-5, atol=1e-6)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_heads_tail_is_found_without_tokens_for_the_encoder(multilingual):
    """So that logits of a chunk of positions exist at a time."""
    module, _ = multilingual
    from ftengine.model.token_loss import find_tail

    assert find_tail(module, module.get_output_embeddings()) is not None
    assert isinstance(task(language="en")._loss, TokenLoss)


def test_greedy_transcripts_are_those_of_generate(multilingual):
    module, processor = multilingual
    own, rows = task(language="de"), spoken_rows(3)
    answers = own.generate(loaded(multilingual), rows, {"max_new_tokens": 8})
    waves = [own.read_input(row, 16_000).samples for row in rows]
    features = processor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    output = module.generate(features, language="de", task="transcribe", max_new_tokens=8)
    expected = [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)]
    assert [answer["completion"] for answer in answers] == expected
    assert any(expected)
    assert own.infer(loaded(multilingual), rows, {"max_new_tokens": 8}) == [{"text": text} for text in expected]


def test_moonshines_loss_gradients_and_transcripts_are_transformers():
    """It reads samples of any length, without tokens of language and task, and states no padding token."""
    module, processor = tiny_moonshine()
    own, rows = task(), spoken_rows(3)
    own.set_model(loaded((module, processor)), None)
    features = [own.encode(row, processor) for row in rows]
    end = processor.tokenizer.eos_token_id
    assert features[0].inputs["labels"] == [*processor.tokenizer("a cat").input_ids, end]
    batch, ours, theirs = own.collate(features, processor), copy.deepcopy(module), copy.deepcopy(module)
    total, weight = own.loss(ours, batch, Criterion())
    (total / weight).backward()
    theirs.config.pad_token_id = end
    waves = [own.read_input(row, 16_000).samples for row in rows]
    inputs = processor.feature_extractor(waves, sampling_rate=16_000, padding=True, return_tensors="pt")
    output = theirs(**inputs, labels=batch["labels"].clone())
    output.loss.backward()
    torch.testing.assert_close(total / weight, output.loss, rtol=1e-5, atol=1e-6)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)
    written = module.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]
    answers = own.generate(loaded((module, processor)), rows, {"max_new_tokens": 8})
    assert [answer["completion"] for answer in answers] == expected
    assert any(expected)


def test_each_row_may_state_its_language(multilingual):
    _, processor = multilingual
    own = task(language_column="language")
    rows = [{**row, "language": name} for row, name in zip(spoken_rows(2), ("de-DE", "hindi"), strict=True)]
    number = processor.tokenizer.convert_tokens_to_ids
    assert [own.encode(row, processor).inputs["labels"][0] for row in rows] == [number("<|de|>"), number("<|hi|>")]
    answers = own.generate(loaded(multilingual), rows, {"max_new_tokens": 4})
    assert [answer["language"] for answer in answers] == ["de", "hi"]
    with raises(DataError, "language"):
        own.encode({**rows[0], "language": None}, processor)
    with raises(DataError, "language"):
        own.infer(loaded(multilingual), [rows[0], {**rows[1], "language": None}])


def test_a_language_that_does_not_suit_the_model_is_refused(multilingual, english):
    with raises(RecipeError, "task.language", "klingon"):
        task(language="klingon").set_model(loaded(multilingual), None)
    with raises(RecipeError, "task.language", "many languages"):
        task().set_model(loaded(multilingual), None)
    with raises(RecipeError, "task.language", "English alone"):
        task(language="de").set_model(loaded(english), None)
    task().set_model(loaded(english), None)
    task(language="en").set_model(loaded(english), None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": " "}, ["`text`", "transcript"]),
        ({"text": None}, ["`text`"]),
        ({"text": "word " * 40}, ["`text`", "64"]),
        ({"audio": encoded(np.zeros(8000, np.float32))}, ["`audio`", "silent", "0.5 s"]),
        ({"audio": encoded(tone(2.5))}, ["2.5 s", "2 s"]),
        ({"audio": b"nothing"}, ["not audio"]),
    ],
)
def test_rows_that_would_teach_something_else_are_refused(english, change, words):
    with raises(DataError, *words):
        task().encode({**spoken_rows(1)[0], **change}, english[1], max_length=64)


def test_a_row_is_shown_as_the_decoder_sees_it(multilingual):
    own = task(language="en")
    (lead, of_labels), (labels, trained) = own.decode_example(
        own.encode(spoken_rows(1)[0], multilingual[1]), multilingual[1]
    )
    assert (of_labels, trained) == (False, True)
    assert "0.wav" in lead
    assert "0.30 s" in lead
    assert lead.endswith("<|startoftranscript|>")
    assert labels == "<|en|><|transcribe|><|notimestamps|>a cat<|endoftext|>"


def test_a_vocabulary_is_made_into_a_dictionary_once(monkeypatch):
    """Of 51,864 tokens that takes tenths of a second, and each row asks for some."""
    _, processor = tiny_whisper()
    made, calls = processor.tokenizer.get_vocab(), []
    monkeypatch.setattr(type(processor.tokenizer), "get_vocab", lambda self: calls.append(1) or made)
    for row in spoken_rows(3):
        task(language="en").encode(row, processor)
    assert len(calls) == 1


def test_sampling_is_refused(english):
    with raises(InputError, "temperature"):
        task().infer(loaded(english), spoken_rows(1), {"temperature": 1.0})


def test_a_saved_model_states_its_language(multilingual, tmp_path):
    module, _ = multilingual
    module.save_pretrained(tmp_path)
    task(language="german").write_config(loaded(multilingual), tmp_path)
    from transformers import GenerationConfig

    settings = GenerationConfig.from_pretrained(tmp_path)
    assert (settings.language, settings.task) == ("de", "transcribe")


def test_a_recording_longer_than_the_window_is_transcribed_window_by_window(english):
    """With times, as transformers demands; training and evaluation refuse it."""
    long = {"audio": encoded(tone(3.0))}
    whisper = loaded(english)
    number = english[1].tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    assert number == len(english[1].tokenizer) - 1  # no tokens of times in the tiny vocabulary
    with raises(DataError, "3.0 s"):
        task().generate(whisper, [{**long, "text": "a"}])
    task().check_input(long)


class Heard:
    """Counts the recordings that an encoder hears."""

    def __init__(self, module):
        self.count = 0
        module.get_encoder().register_forward_hook(self)

    def __call__(self, module, args, output):
        self.count += len(output.last_hidden_state)


def prepared(made, *, encoder):
    """Return a model whose decoder trains, or all of it, as the engine hands it to the task."""
    whisper = loaded(made)
    whisper.pretrained = frozenset(name for name, _ in whisper.module.named_parameters())
    whisper.module.get_encoder().requires_grad_(encoder)
    return whisper, Heard(whisper.module)


def test_a_recording_is_heard_once_where_the_encoder_does_not_change(english, monkeypatch):
    """The loss and the decoder's gradients are the same as without; its spectrogram is made once too."""
    rows, made, extract = spoken_rows(4), [], type(english[1].feature_extractor).__call__
    monkeypatch.setattr(
        type(english[1].feature_extractor),
        "__call__",
        lambda self, waves, **options: made.extend(waves) or extract(self, waves, **options),
    )
    figures = {}
    for kept in (64, 0):
        own = task(keep_states=kept)
        whisper, heard = prepared(english, encoder=False)
        own.set_model(whisper, "a strategy")
        features = [own.encode(row, english[1]) for row in rows]
        made.clear()
        for order in ([0, 1], [2, 3], [3, 0], [1, 2]):
            batch = own.collate([features[i] for i in order], english[1])
            total, _ = own.loss(whisper.module, batch, Criterion())
            total.backward()
        own.predict(whisper.module, batch)
        gradient = {name: p.grad for name, p in whisper.module.named_parameters() if p.grad is not None}
        figures[kept] = (heard.count, total.item(), gradient)
        assert len(made) == (4 if kept else 8)
    assert (figures[64][0], figures[0][0]) == (4, 10)
    assert figures[64][1] == pytest.approx(figures[0][1], rel=1e-5)
    assert figures[64][2].keys() == figures[0][2].keys()
    for name, gradient in figures[0][2].items():
        torch.testing.assert_close(figures[64][2][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_answering_needs_no_second_hearing(english):
    own, (whisper, heard) = task(), prepared(english, encoder=False)
    first = own.generate(whisper, spoken_rows(3), {"max_new_tokens": 6})
    own.set_model(whisper, "a strategy")
    heard.count = 0
    batch = own.collate([own.encode(row, english[1]) for row in spoken_rows(3)], english[1])
    own.predict(whisper.module, batch)
    assert own.generate(whisper, spoken_rows(3), {"max_new_tokens": 6}) == first
    assert heard.count == 3


def test_states_are_not_kept_where_the_encoder_trains_or_was_changed(english):
    own = task()
    whisper, heard = prepared(english, encoder=True)
    batch = own.collate([own.encode(row, english[1]) for row in spoken_rows(2)], english[1])
    own.set_model(whisper, "a strategy")
    for _ in range(2):
        own.loss(whisper.module, batch, Criterion())
    assert heard.count == 4
    whisper, heard = prepared(english, encoder=False)
    whisper.pretrained = frozenset()  # as if a strategy had put its own modules there
    own.set_model(whisper, "a strategy")
    for _ in range(2):
        own.predict(whisper.module, batch)
    assert heard.count == 4


def test_no_more_states_are_kept_than_the_recipe_allows(english):
    from ftengine_speech.states import EncoderStates

    own, (whisper, heard) = task(), prepared(english, encoder=False)
    own._states = EncoderStates(100 * 32 * 4 + 10)  # the states of one recording
    own.set_model(whisper, "a strategy")
    batch = own.collate([own.encode(row, english[1]) for row in spoken_rows(3)], english[1])
    for _ in range(2):
        own.predict(whisper.module, batch)
    assert heard.count == 3 + 2


@pytest.mark.slow
def test_the_task_conforms(english):
    rows = spoken_rows(4)
    check_task(task, english[1], rows, lambda labels: loaded(english))


def test_speech_is_recognised_by_its_columns():
    rows = [{"path": "a.mp3", "sentence": "we go", "client_id": str(i)} for i in range(3)]
    found = SpeechToText.recognise(list(rows[0]), rows)
    assert (found.columns, found.certainty) == ({"audio": "path", "text": "sentence"}, 3)
    assert found.split == {"by": "group", "column": "client_id"}
    assert SpeechToText.recognise(["path", "text"], [{"path": "a.png", "text": "x"}]) is None


def test_the_tokenizer_for_tests_has_whispers_marks():
    tokenizer = whisper_tokenizer()
    assert tokenizer.decode(tokenizer("héllo").input_ids, skip_special_tokens=True) == "héllo"
