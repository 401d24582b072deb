"""Augmenters of audio: noise, speed, gain, and masks of spectrograms (SpecAugment).

What each draws is a function of (seed, epoch, row), as the engine's `rng` is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ftengine.api import Augmenter, AugmenterConfig, Batch, Config, InputAugmenter, RandomSource, Task
from ftengine.errors import RecipeError
from ftengine_speech.audio import Audio
from ftengine_speech.noise import LOUD, frame_powers
from ftengine_speech.speech_to_text import SpeechToText

DRAWS = 1 << 32
"""Numbers of which `rng` draws the seed of numpy's generator, for as many samples as a recording has."""


class NoiseConfig(AugmenterConfig):
    """Options of augmenter noise."""

    snr: tuple[float, float] = Field(
        (5.0, 30.0), description="lowest and highest signal-to-noise ratio in dB, speech (its loud frames) over noise"
    )
    colour: float = Field(
        1.0, ge=0, le=2, description="how power falls with frequency: 0 white, 1 pink (as rooms and streets), 2 brown"
    )

    @model_validator(mode="after")
    def _in_order(self) -> NoiseConfig:
        if not -20 <= self.snr[0] <= self.snr[1] <= 80:
            raise ValueError("snr: write [lowest, highest], from -20 to 80 dB")
        return self


class Noise(InputAugmenter):
    """Adds noise at a signal-to-noise ratio drawn from a range."""

    name = "audio-noise"
    modality = "audio"
    Config = NoiseConfig

    def change(self, value: Audio, rng: RandomSource) -> Audio:
        ratio = _between(self.config.snr, rng)
        noise = coloured(len(value.samples), self.config.colour, np.random.default_rng(rng.randrange(DRAWS)))
        power = float(np.percentile(frame_powers(value), LOUD)) if len(value.samples) else 0.0
        return _with(value, value.samples + noise * np.sqrt(power / 10 ** (ratio / 10)))


class SpeedConfig(AugmenterConfig):
    """Options of augmenter audio-speed."""

    factors: tuple[float, float] = Field(
        (0.9, 1.1), description="slowest and fastest, as factors of the speed; the pitch moves along"
    )

    @model_validator(mode="after")
    def _in_order(self) -> SpeedConfig:
        if not 0.5 <= self.factors[0] <= self.factors[1] <= 2:
            raise ValueError("factors: write [slowest, fastest], from 0.5 to 2")
        return self


class Speed(InputAugmenter):
    """Plays a recording slower or faster, as of tape (Ko et al. 2015, doi:10.21437/Interspeech.2015-711)."""

    name = "audio-speed"
    modality = "audio"
    Config = SpeedConfig

    def change(self, value: Audio, rng: RandomSource) -> Audio:
        factor = _between(self.config.factors, rng)
        claimed = max(1, round(value.rate * factor))
        played = Audio(value.samples, claimed, value.place).resampled(value.rate)
        return played if len(played.samples) else value


class GainConfig(AugmenterConfig):
    """Options of augmenter audio-gain."""

    decibels: tuple[float, float] = Field((-12.0, 6.0), description="lowest and highest change of level in dB")

    @model_validator(mode="after")
    def _in_order(self) -> GainConfig:
        if not -60 <= self.decibels[0] <= self.decibels[1] <= 40:
            raise ValueError("decibels: write [lowest, highest], from -60 to 40")
        return self


class Gain(InputAugmenter):
    """Makes a recording louder or quieter; what exceeds full scale is clipped, as a recorder clips it."""

    name = "audio-gain"
    modality = "audio"
    Config = GainConfig

    def change(self, value: Audio, rng: RandomSource) -> Audio:
        louder = value.samples * 10 ** (_between(self.config.decibels, rng) / 20)
        return _with(value, np.clip(louder, -1, 1))


class SpecAugmentConfig(Config):
    """Options of augmenter spec-augment."""

    time_masks: int = Field(2, ge=0, le=20, description="stretches of time that are masked")
    time_share: float = Field(
        0.1, gt=0, le=0.5, description="longest stretch as a share of the recording's own length, without padding"
    )
    frequency_masks: int = Field(2, ge=0, le=20, description="bands of frequencies that are masked")
    frequency_share: float = Field(0.3, gt=0, le=0.9, description="widest band as a share of all frequencies")


class SpecAugment(Augmenter):
    """Masks stretches of time and bands of frequency of spectrograms by their mean (Park et al., arXiv:1904.08779).

    For models that read spectrograms, such as Whisper; those that read samples (Wav2Vec2, HuBERT) mask their own
    features while they train (`mask_time_prob` in config.json).
    """

    name = "spec-augment"
    modality = "audio"
    Config = SpecAugmentConfig

    def check_mix(self, task: Task) -> None:
        if self.config.time_masks == self.config.frequency_masks == 0:
            raise RecipeError("augmenter 'spec-augment' masks nothing: set time_masks or frequency_masks above 0.")

    def mix(self, batch: Batch, task: Task, rng: RandomSource) -> Batch:
        batch = task.features(batch) if isinstance(task, SpeechToText) else batch
        if "input_features" not in batch:
            raise RecipeError(
                "augmenter 'spec-augment' masks spectrograms, and this model reads samples. Take it out of the recipe; "
                "such models mask their own features (mask_time_prob in config.json)."
            )
        features = batch["input_features"].clone()
        for row in features:
            _mask(row, self.config, rng)
        return {**batch, "input_features": features}


def _mask(features: Any, config: SpecAugmentConfig, rng: RandomSource) -> None:
    """Mask one spectrogram (frequencies, frames) in place; frames of padding alone equal the last one."""
    size, frames = features.shape
    spoken = int((features != features[:, -1:]).any(dim=0).sum()) or frames
    mean = features[:, :spoken].mean()
    for _ in range(config.time_masks):
        features[:, _stretch(spoken, config.time_share, rng)] = mean
    for _ in range(config.frequency_masks):
        features[_stretch(size, config.frequency_share, rng), :spoken] = mean


def _stretch(length: int, share: float, rng: RandomSource) -> slice:
    """Draw a stretch of at most this share of a length."""
    width = rng.randrange(0, max(1, int(share * length)) + 1)
    start = rng.randrange(0, max(1, length - width))
    return slice(start, start + width)


def coloured(count: int, colour: float, random: np.random.Generator) -> np.ndarray:
    """Return noise of mean power 1 whose power falls as 1 / frequency ** colour, (count,) float32."""
    if not count:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(random.standard_normal(count))
    frequencies = np.arange(len(spectrum), dtype=np.float64)
    frequencies[0] = 1
    noise = np.fft.irfft(spectrum * frequencies ** (-colour / 2), n=count)
    return (noise / max(1e-12, float(np.sqrt(np.mean(noise**2))))).astype(np.float32)


def _between(ends: tuple[float, float], rng: RandomSource) -> float:
    return ends[0] + (ends[1] - ends[0]) * rng.random()


def _with(audio: Audio, samples: np.ndarray) -> Audio:
    return Audio(samples.astype(np.float32), audio.rate, audio.place)
