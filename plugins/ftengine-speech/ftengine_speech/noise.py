"""Estimation of the signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

from ftengine_speech.audio import Audio

FRAME = 0.02
"""Seconds of a frame whose level is taken: shorter than most sounds of speech, longer than a period of the voice."""
QUIET, LOUD = 10, 90
"""Percentiles of the frames' power that count as noise alone, and as speech with noise."""
MOST = 60.0
"""dB from which a recording counts as free of noise."""


def frame_powers(audio: Audio) -> np.ndarray:
    """Return the mean power of each frame, (frames,)."""
    size = max(1, round(FRAME * audio.rate))
    count = max(1, len(audio.samples) // size)
    frames = np.resize(audio.samples, (count, size)) if len(audio.samples) < size else audio.samples[: count * size]
    return np.square(frames.reshape(count, -1).astype(np.float64)).mean(axis=1)


def signal_to_noise(audio: Audio) -> float:
    """Return an estimate of the signal-to-noise ratio in dB, from 0 to 60: loud frames over quiet ones."""
    if not len(audio.samples):
        return 0.0
    noise, loud = np.percentile(frame_powers(audio), (QUIET, LOUD))
    if noise <= 0:
        return MOST
    return float(np.clip(10 * np.log10(max(loud - noise, 1e-12) / noise), 0.0, MOST))
