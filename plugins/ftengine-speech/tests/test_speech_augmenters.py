"""Augmenters of audio: what they change, by how much, and that they depend on the generator alone."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from audio_files import RATE, spoken_rows, tiny_whisper, tone
from expected import raises

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.testing import check_augmenter
from ftengine_speech import Gain, Noise, Room, SpecAugment, SpeechToText, Speed
from ftengine_speech.audio import Audio
from ftengine_speech.augmenters import coloured
from ftengine_speech.noise import LOUD, frame_powers, signal_to_noise

VOICE = Audio(tone(1.0), RATE, "a.wav")


def made(cls, **options):
    return cls(cls.Config(**options))


@pytest.mark.parametrize("ratio", [0.0, 10.0, 25.0])
def test_noise_has_the_stated_ratio(ratio):
    noisy = made(Noise, snr=(ratio, ratio)).change(VOICE, random.Random(0))
    added = noisy.samples - VOICE.samples
    loud = np.percentile(frame_powers(VOICE), LOUD)
    assert 10 * np.log10(loud / np.mean(added**2)) == pytest.approx(ratio, abs=0.1)
    assert (noisy.rate, len(noisy.samples)) == (RATE, len(VOICE.samples))


@pytest.mark.parametrize(("colour", "slope"), [(0.0, 0.0), (1.0, -3.0), (2.0, -6.0)])
def test_noise_falls_by_octaves_as_its_colour_says(colour, slope):
    noise = coloured(1 << 17, colour, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[1 << k : 2 << k].mean() for k in range(8, 15)]
    assert np.diff(10 * np.log10(octaves)).mean() == pytest.approx(slope, abs=0.3)
    assert np.mean(noise**2) == pytest.approx(1, abs=0.01)


def test_speed_moves_length_and_pitch():
    fast = made(Speed, factors=(1.25, 1.25)).change(VOICE, random.Random(0))
    assert fast.seconds == pytest.approx(0.8, abs=0.01)
    spectrum = np.abs(np.fft.rfft(fast.samples))
    assert spectrum.argmax() / fast.seconds == pytest.approx(440 * 1.25, rel=0.01)


@pytest.mark.parametrize("seconds", [0.2, 0.4])
def test_a_room_reverberates_as_long_as_is_stated(seconds):
    """Level, length and beginning stay."""
    room = pytest.importorskip("pyroomacoustics") and made(Room, reverberation=(seconds, seconds), rooms=2)
    click = np.zeros(RATE, np.float32)
    click[1000] = 0.5
    heard = room.change(Audio(click, RATE), random.Random(0)).samples
    assert (len(heard), np.abs(heard[:1000]).max() < 1e-6) == (RATE, True)
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(click**2)), rel=1e-3)
    remaining = 10 * np.log10(np.cumsum(heard[::-1] ** 2)[::-1] / np.sum(heard**2) + 1e-12)
    fall = np.argmax(remaining < -25) - np.argmax(remaining < -5)  # dB, of which 60 are stated
    assert 3 * fall / RATE == pytest.approx(seconds, rel=0.3)


def test_rooms_need_their_library(monkeypatch):
    monkeypatch.setattr("ftengine_speech.rooms.find_spec", lambda name: None)
    with raises(RecipeError, "audio-room", "pyroomacoustics"):
        Room().check_options()


def test_gain_is_in_decibels_and_clips():
    louder = made(Gain, decibels=(6, 6)).change(VOICE, random.Random(0))
    np.testing.assert_allclose(louder.samples, VOICE.samples * 10 ** (6 / 20), rtol=1e-5)
    assert np.abs(made(Gain, decibels=(40, 40)).change(VOICE, random.Random(0)).samples).max() == 1


def test_spectrograms_are_masked_within_the_recording():
    _, processor = tiny_whisper(multilingual=False)
    task = SpeechToText(SpeechToText.Config(max_seconds=2.0))
    batch = task.collate([task.encode(row, processor) for row in spoken_rows(3)], processor)
    augmenter = made(SpecAugment, time_masks=1, frequency_masks=1)
    masked = augmenter.mix(batch, task, random.Random(3))
    changed = masked["input_features"] != batch["input_features"]
    assert changed.any()
    spoken = (batch["input_features"][0] != batch["input_features"][0][:, -1:]).any(dim=0).sum()
    assert not changed[0][:, spoken:].any()
    assert torch.equal(masked["labels"], batch["labels"])
    again = augmenter.mix(batch, task, random.Random(3))
    assert torch.equal(again["input_features"], masked["input_features"])
    module, processor = tiny_whisper(multilingual=False)
    whisper = LoadedModel(module, processor, "tiny", "speech-seq2seq", max_length=64)
    task.set_model(whisper, None)  # whose encoder's states are kept, so that batches hold samples
    kept = task.collate([task.encode(row, processor) for row in spoken_rows(3)], processor)
    assert "input_features" not in kept
    assert torch.equal(augmenter.mix(kept, task, random.Random(3))["input_features"], masked["input_features"])
    with raises(RecipeError, "spec-augment", "samples"):
        augmenter.mix({"input_values": torch.zeros(1, 5)}, task, random.Random(0))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Noise, {"snr": (30, 5)}),
        (Speed, {"factors": (0.1, 1)}),
        (Gain, {"decibels": (3, 1)}),
        (Room, {"distance": (1, 9)}),
    ],
)
def test_ranges_in_the_wrong_order_are_refused(cls, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        made(cls, **options)


@pytest.mark.parametrize("cls", [Gain, Noise, Room, Speed, SpecAugment])
def test_the_augmenters_conform(cls):
    if cls is Room:
        pytest.importorskip("pyroomacoustics")
        cls = partial(made, Room, reverberation=(0.1, 0.1), rooms=2)
    _, processor = tiny_whisper(multilingual=False)
    task = SpeechToText(SpeechToText.Config(max_seconds=2.0))
    check_augmenter(cls, task, spoken_rows(3), processor)


def test_an_estimated_ratio_follows_the_noise():
    pause = np.concatenate([tone(0.5), np.zeros(RATE // 2, np.float32)])
    estimates = [
        signal_to_noise(made(Noise, snr=(ratio, ratio), colour=0).change(Audio(pause, RATE), random.Random(1)))
        for ratio in (5, 15, 25)
    ]
    assert estimates == sorted(estimates)
    assert estimates[2] == pytest.approx(25, abs=3)
    assert signal_to_noise(Audio(np.zeros(0, np.float32), RATE)) == 0
