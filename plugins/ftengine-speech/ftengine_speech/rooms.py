"""Augmenter `audio-room`: recordings as rooms let them sound, by pyroomacoustics."""

from __future__ import annotations

import math
import random
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ftengine.api import AugmenterConfig, InputAugmenter, RandomSource
from ftengine.errors import RecipeError
from ftengine_speech.audio import Audio

SIDES, HEIGHTS, MARGIN = (4.0, 8.0), (2.4, 3.5), 0.4
"""Metres: length and width of a room, its height, and the least distance of mouth and microphone from a wall."""
MOUTHS, MICROPHONES = (1.1, 1.8), (0.7, 1.5)
"""Metres above the floor."""
SABINE = 0.1611
"""Seconds by metre, in T = 0.1611 V / (a S) (Sabine's formula)."""


class RoomConfig(AugmenterConfig):
    """Options of augmenter audio-room."""

    reverberation: tuple[float, float] = Field(
        (0.15, 0.4),
        description="shortest and longest reverberation time in seconds: until sound has lost 60 dB; raised to the "
        "least that a room can have, 0.09 s in the smallest and 0.15 s in the largest",
    )
    distance: tuple[float, float] = Field(
        (0.5, 2.5), description="least and greatest distance from mouth to microphone in metres"
    )
    rooms: int = Field(16, ge=1, le=1000, description="rooms, each with one place of mouth and microphone")

    @model_validator(mode="after")
    def _in_order(self) -> RoomConfig:
        if not 0.1 <= self.reverberation[0] <= self.reverberation[1] <= 1:
            raise ValueError("reverberation: write [shortest, longest], from 0.1 to 1 s")
        if not 0.1 <= self.distance[0] <= self.distance[1] <= SIDES[0] - 2 * MARGIN:
            raise ValueError(f"distance: write [least, greatest], from 0.1 to {SIDES[0] - 2 * MARGIN:g} m")
        return self


class Room(InputAugmenter):
    """Lets a recording sound as in a room, by pyroomacoustics' image sources (Allen & Berkley 1979,
    doi:10.1121/1.382599).

    Rooms are boxes of 4 to 8 m, drawn once, the same for every seed; each response is computed when its room is first
    drawn. Length and level of a recording stay, and speech begins when it began; what sounds on after its end is cut.
    """

    name = "audio-room"
    modality = "audio"
    Config = RoomConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._responses: dict[tuple[int, int], np.ndarray] = {}

    def check_options(self) -> None:
        """Raise RecipeError if pyroomacoustics is not installed."""
        if find_spec("pyroomacoustics") is None:
            raise RecipeError(
                f"augmenter {self.name!r} needs pyroomacoustics. Install it: pip install 'ftengine-speech[rooms]'."
            )

    def change(self, value: Audio, rng: RandomSource) -> Audio:
        from scipy.signal import fftconvolve

        room = rng.randrange(self.config.rooms), value.rate
        if not len(value.samples):
            return value
        if room not in self._responses:
            self._responses[room] = response(self.config, *room)
        heard = fftconvolve(value.samples, self._responses[room])[: len(value.samples)]
        before, after = (float(np.sqrt(np.mean(np.square(x)))) for x in (value.samples, heard))
        return Audio((heard * (before / max(after, 1e-12))).astype(np.float32), value.rate, value.place)


def response(config: RoomConfig, number: int, rate: int) -> np.ndarray:
    """Return the response of a room to an impulse from its arrival on, (n,) float32."""
    import pyroomacoustics as pra

    rng = random.Random(number)
    size = [rng.uniform(*SIDES), rng.uniform(*SIDES), rng.uniform(*HEIGHTS)]
    length, width, height = size
    wall = 2 * (length * width + length * height + width * height)
    # Walls absorb all sound at most, so that a large room is not arbitrarily dry.
    time = max(rng.uniform(*config.reverberation), 1.01 * SABINE * length * width * height / wall)
    absorption, order = pra.inverse_sabine(time, size)
    room: Any = pra.ShoeBox(size, fs=rate, materials=pra.Material(absorption), max_order=order)
    distance, mouth, microphone = rng.uniform(*config.distance), [0.0] * 3, [-1.0] * 3
    while not all(MARGIN <= x <= side - MARGIN for x, side in zip(microphone[:2], size, strict=False)):
        angle = rng.uniform(0, 2 * math.pi)
        mouth = [rng.uniform(MARGIN, length - MARGIN), rng.uniform(MARGIN, width - MARGIN), rng.uniform(*MOUTHS)]
        microphone = [mouth[0] + distance * math.cos(angle), mouth[1] + distance * math.sin(angle)]
        microphone.append(rng.uniform(*MICROPHONES))
    room.add_source(mouth)
    room.add_microphone(microphone)
    room.compute_rir()
    found = room.rir[0][0]
    arrival = np.flatnonzero(np.abs(found) >= np.abs(found).max() / 2)[0]
    return found[arrival:].astype(np.float32)
