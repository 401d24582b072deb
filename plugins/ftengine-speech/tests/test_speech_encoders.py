"""Encoders of speech: CTC's labels, loss, gradients and transcripts equal transformers' own; classification."""

import copy

import pytest
import torch
from audio_files import encoded, spoken_rows, tiny_parakeet, tiny_wav2vec2, tone
from expected import raises

from ftengine.api import LoadedModel
from ftengine.errors import DataError, InputError
from ftengine.model import Criterion
from ftengine.testing import check_task
from ftengine_speech import AudioClassification, SpeechCTC


@pytest.fixture(scope="module", params=[True, False], ids=["masked", "unmasked"])
def letters(request):
    return tiny_wav2vec2(mask=request.param)


@pytest.fixture(scope="module")
def classifier():
    return tiny_wav2vec2("Wav2Vec2ForSequenceClassification", num_labels=2)


def loaded(made, head="ctc", labels=None):
    return LoadedModel(copy.deepcopy(made[0]), made[1], "tiny", head, labels=labels)


def test_labels_are_of_the_vocabularys_case_and_signs(letters):
    processor = letters[1]
    row = {**spoken_rows(1)[0], "text": "It's fine, Anna (really)!"}
    labels = SpeechCTC().encode(row, processor).inputs["labels"]
    assert labels == processor.tokenizer("IT'S FINE ANNA REALLY").input_ids
    assert SpeechCTC(SpeechCTC.Config(case="keep")).encode(row, processor).unknown > 5


def test_loss_and_gradients_are_transformers(letters):
    module, processor = letters
    own, rows = SpeechCTC(), spoken_rows(4)
    batch = own.collate([own.encode(row, processor) for row in rows], processor)
    ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    total, weight = own.loss(ours, batch, Criterion())
    total.backward()
    waves = [own.read_input(row, 16_000).samples for row in rows]
    inputs = processor(audio=waves, sampling_rate=16_000, padding=True, return_tensors="pt")
    encoded_texts = [
        processor.tokenizer(row["text"].upper().replace(",", "").replace(".", "")).input_ids for row in rows
    ]
    labels = processor.tokenizer.pad({"input_ids": encoded_texts}, return_tensors="pt")
    labels = labels.input_ids.masked_fill(labels.attention_mask.ne(1), -100)
    output = theirs(**inputs, labels=labels)
    output.loss.backward()
    torch.testing.assert_close(total, output.loss, rtol=1e-5, atol=1e-4)
    assert weight == int((labels != -100).sum())
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_transcripts_are_the_likeliest_frames_collapsed(letters):
    module, processor = letters
    own, row = SpeechCTC(), spoken_rows(1)[0]
    inputs = processor(audio=own.read_input(row, 16_000).samples, sampling_rate=16_000, return_tensors="pt")
    expected = processor.batch_decode(module(**inputs).logits.argmax(-1))[0].strip()
    (answer,) = own.generate(loaded(letters), [row])
    assert answer["completion"] == expected
    assert own.infer(loaded(letters), [row]) == [{"text": expected}]
    with raises(InputError, "temperature"):
        own.infer(loaded(letters), [row], {"temperature": 1.0})


def test_answers_state_the_language_of_the_row_or_recipe(letters):
    """By which `wer` writes both texts alike."""
    row = spoken_rows(1)[0]
    for options, language in (({}, "en"), ({"language": "german"}, "de"), ({"language_column": "lang"}, "pt")):
        own = SpeechCTC(SpeechCTC.Config(**options))
        (answer,) = own.generate(loaded(letters), [{**row, "lang": "pt-BR"}])
        assert answer["language"] == language


def test_a_transcript_longer_than_its_recordings_frames_is_refused(letters):
    """Its loss is infinite, or nothing where zero_infinity is set."""
    own = SpeechCTC()
    own.set_model(loaded(letters), None)
    row = {"audio": encoded(tone(0.012)), "text": "hello there"}
    with raises(DataError, "11 tokens", "frames"):
        own.encode(row, letters[1])
    own.encode({**row, "audio": encoded(tone(0.5))}, letters[1])


def test_parakeets_loss_gradients_and_transcripts_are_transformers():
    """Its encoder reads spectrograms, and its frames are of several of theirs."""
    module, processor = tiny_parakeet()
    own, rows = SpeechCTC(), spoken_rows(4)
    own.set_model(loaded((module, processor)), None)
    batch = own.collate([own.encode(row, processor) for row in rows], processor)
    ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    total, weight = own.loss(ours, batch, Criterion())
    total.backward()
    waves = [own.read_input(row, 16_000).samples for row in rows]
    inputs = processor.feature_extractor(waves, sampling_rate=16_000, return_tensors="pt")
    texts = [row["text"].lower().replace(",", "").replace(".", "") for row in rows]
    labels = processor.tokenizer(texts, padding=True, return_tensors="pt")
    assert weight == int(labels.attention_mask.sum())
    output = theirs(**inputs, labels=labels.input_ids.masked_fill(labels.attention_mask.ne(1), -100))
    output.loss.backward()
    torch.testing.assert_close(total, output.loss, rtol=1e-5, atol=1e-4)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    expected = [text.strip() for text in processor.batch_decode(module.generate(**inputs))]
    assert [answer["completion"] for answer in own.generate(loaded((module, processor)), rows)] == expected
    assert [own._frames(len(wave)) for wave in waves] == own._lengths(module, batch).tolist()
    with raises(DataError, "frames"):
        own.encode({"audio": encoded(tone(0.1)), "text": "hello there"}, processor)


def labelled_rows(count=6):
    return [{"audio": row["audio"], "label": ("dog", "cat")[i % 2]} for i, row in enumerate(spoken_rows(count))]


def test_recordings_are_classified_as_transformers_does(classifier):
    module, extractor = classifier
    task, rows = AudioClassification(), labelled_rows()
    task.labels = task.learn_labels({"train": rows})
    assert task.labels.names == ("cat", "dog")
    batch = task.collate([task.encode(row, extractor) for row in rows], extractor)
    total, weight = task.loss(module, batch, Criterion())
    output = module(**batch)
    assert (total / weight).item() == pytest.approx(output.loss.item(), rel=1e-5)
    model = loaded(classifier, "audio-classification", task.labels)
    answers = task.infer(model, rows[:1])
    assert answers[0]["scores"]["cat"] == pytest.approx(output.logits.softmax(-1)[0, 0].item(), rel=0.05)
    found = AudioClassification.recognise(["file", "label"], [{"file": "a.wav", "label": "dog"}])
    assert found.columns == {"audio": "file"}


@pytest.mark.slow
def test_the_tasks_conform(letters, classifier):
    """Models that are given no mask hear the padding, as they did when they were trained."""
    hears = {"losses_add_up_over_batches": "no mask", "predictions_do_not_depend_on_the_batch": "no mask"}
    masked = letters[1].feature_extractor.return_attention_mask
    check_task(SpeechCTC, letters[1], spoken_rows(4), lambda labels: loaded(letters), {} if masked else hears)
    rows = labelled_rows()
    check_task(
        AudioClassification, classifier[1], rows, lambda labels: loaded(classifier, "audio-classification", labels)
    )
