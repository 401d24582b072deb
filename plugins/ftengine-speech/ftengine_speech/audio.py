"""Audio in rows: from files or bytes to samples of one channel; errors name the file.

Files are read by libsndfile (WAV, FLAC, OGG with Vorbis or Opus, MP3, AIFF) in blocks, and resampled by soxr.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftengine.api import require_inside
from ftengine.errors import DataError, shown

if TYPE_CHECKING:
    from soundfile import SoundFile

FORMATS = ("AIFF", "FLAC", "MP3", "MPEG", "OGG", "WAV", "WAVEX", "W64", "CAF", "AU")
"""Containers that are read, as libsndfile calls them. Raw samples have no header that says what they are."""

BLOCK = 1 << 16
"""Frames that are decoded at a time."""

MOST_CHANNELS, RATES = 32, (1_000, 384_000)
"""What a damaged header must not exceed, as memory is taken by it."""

SILENCE = 10 ** (-70 / 20)
"""Highest sample, of 1, of what counts as silent: 70 dB below full scale, 50 dB below quiet speech."""

CLIPPED, CLIPPED_RUN = 0.01, 0.999
"""Share of samples at full scale from which a recording is clipped, and the level that counts as full scale. Of speech
normalised to its peak it is one sample in ten thousand."""

ADDRESS = re.compile(r"\b[a-z][a-z0-9]{1,8}:/")
"""An address, also one whose two slashes became one as it was taken for a path."""

ALLOWED = "it must be the path of an audio file, a file's bytes, {bytes, path} or {array, sampling_rate}"


@dataclass(frozen=True, eq=False)
class Audio:
    """Samples of one channel.

    Args:
        samples: (n,) float32, full scale is 1.
        rate: samples per second.
        place: the file's name, for messages.
    """

    samples: np.ndarray
    rate: int
    place: str = "audio"

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Audio) and self.rate == other.rate and np.array_equal(self.samples, other.samples)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        level = (
            20 * np.log10(max(1e-9, float(np.sqrt(np.mean(np.square(self.samples)))))) if len(self.samples) else -180
        )
        return f"{self.place} ({self.seconds:.2f} s at {self.rate} Hz, {level:.1f} dB)"

    def resampled(self, rate: int) -> Audio:
        """Return the same at another rate, without what that rate cannot hold."""
        if rate == self.rate:
            return self
        import soxr

        return Audio(soxr.resample(self.samples, self.rate, rate).astype(np.float32), rate, self.place)

    @property
    def silent(self) -> bool:
        return not len(self.samples) or float(np.abs(self.samples).max()) < SILENCE

    @property
    def clipped(self) -> bool:
        return bool(len(self.samples)) and float(np.mean(np.abs(self.samples) >= CLIPPED_RUN)) > CLIPPED


@dataclass(frozen=True)
class Header:
    """What an audio file's header states."""

    seconds: float
    rate: int
    channels: int


class LazyAudio(Sequence[Audio]):
    """A sequence of one recording, which is decoded (`read_audio`) at each access."""

    def __init__(self, value: Any, column: str, longest: float) -> None:
        self._value, self._column, self._longest = value, column, longest

    @property
    def value(self) -> Any:
        """What the row holds."""
        return self._value

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if index not in (0, -1):
            raise IndexError(index)
        return read_audio(self._value, self._column, self._longest)


def read_audio(value: Any, column: str, longest: float) -> Audio:
    """Return a row's audio: channels are averaged, and the rate is the file's.

    Args:
        value: a path, a file's bytes, {bytes, path}, {array, sampling_rate}, or `Audio`.
        column: the column it is from, for messages.
        longest: seconds that are allowed.

    Raises:
        DataError: the file is missing, damaged, of another kind or too long, its header or name says so, or it holds
            numbers that are none.
    """
    if isinstance(value, Audio):
        _require_short(value.seconds, longest, column, value.place)  # an augmenter may have made it longer
        return value
    if isinstance(value, Mapping) and value.get("array") is not None:
        return _of_array(value, column, longest)
    blocks, place = [], place_of(value)
    with _opened(value, column) as file:
        most = int(longest * file.samplerate)
        _require_short(file.frames / file.samplerate, longest, column, place)
        rate, count = file.samplerate, 0
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
            count += len(block)
            if count > most:  # the header may be wrong
                _require_short(count / rate, longest, column, place)
        if count < file.frames and file.frames < 1 << 62:  # MP3s state their length by estimation
            _require_whole(count, file, column, place)
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return _checked(Audio(samples, rate, place), column)


def read_header(value: Any, column: str) -> Header:
    """Return what the header of an audio file states (DataError: as `read_audio`)."""
    if isinstance(value, Audio) or (isinstance(value, Mapping) and value.get("array") is not None):
        audio = read_audio(value, column, float("inf"))
        return Header(audio.seconds, audio.rate, 1)
    with _opened(value, column) as file:
        return Header(file.frames / file.samplerate, file.samplerate, file.channels)


def audio_identity(value: Any) -> Any:
    """Return a hash of a file's bytes, or of samples; if they cannot be read, the value as a message shows it."""
    hashed = blake2b(digest_size=16)
    try:
        if isinstance(value, Audio):
            hashed.update(np.ascontiguousarray(value.samples).data)
        elif isinstance(value, Mapping) and value.get("array") is not None:
            hashed.update(np.ascontiguousarray(value["array"], dtype=np.float32).data)
        else:
            source = _source(value, "")
            with open(source, "rb") if isinstance(source, Path) else source as file:
                while chunk := file.read(1 << 20):
                    hashed.update(chunk)
    except (DataError, OSError, ValueError, TypeError):
        return shown(value)
    return hashed.hexdigest()


def place_of(value: Any) -> str:
    """Return the name of a recording for messages: its path, if it has one."""
    if isinstance(value, Audio):
        return value.place
    path = value.get("path") if isinstance(value, Mapping) else value
    return str(path) if isinstance(path, (str, Path)) and str(path) else "the audio"


def _of_array(value: Mapping[str, Any], column: str, longest: float) -> Audio:
    rate, place = value.get("sampling_rate"), place_of(value)
    if not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"`{column}`: sampling_rate is {shown(rate)}; {RATES[0]} to {RATES[1]} Hz are allowed.")
    try:
        given = np.asarray(value["array"])
        samples = given.astype(np.float32)
    except (TypeError, ValueError):
        raise DataError(f"`{column}`: array holds values that are no numbers; {ALLOWED}.") from None
    if given.dtype.kind in "iu" and samples.size and np.abs(samples).max() > 1:
        raise DataError(
            f"`{column}`: array holds integers up to {np.abs(samples).max():g}; samples are from -1 to 1. Divide them "
            "by full scale: 32768 for 16 bits."
        )
    if samples.ndim == 2:
        samples = samples.mean(axis=int(samples.shape[1] < samples.shape[0]))
    if samples.ndim != 1:
        raise DataError(f"`{column}`: array has {samples.ndim} dimensions; it must have one, of samples.")
    _require_short(len(samples) / rate, longest, column, place)
    return _checked(Audio(samples, rate, place), column)


def _checked(audio: Audio, column: str) -> Audio:
    if not np.isfinite(audio.samples).all():
        raise DataError(f"`{column}`: {audio.place} holds samples that are not finite.")
    return audio


def _require_short(seconds: float, longest: float, column: str, place: str) -> None:
    if seconds > longest:
        length = f"{seconds:.1f} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"
        raise DataError(
            f"`{column}`: {place} takes {length}; at most {longest:g} s are allowed, as the model reads no more. Cut "
            "it at pauses, with the transcript of each part, or leave such rows out (data.on_error: skip)."
        )


def _require_whole(count: int, file: SoundFile, column: str, place: str) -> None:
    if file.format not in ("MP3", "MPEG") or count < file.frames / 2:
        raise DataError(
            f"`{column}`: {place} is cut off: its header states {file.frames} frames, and {count} can be read."
        )


@contextmanager
def _opened(value: Any, column: str) -> Iterator[SoundFile]:
    import soundfile

    source = _source(value, column)
    place = place_of(value)
    try:
        with soundfile.SoundFile(str(source) if isinstance(source, Path) else source) as file:
            if file.format not in FORMATS:
                raise ValueError(f"its format is {file.format}, which is not read")
            if not (file.channels <= MOST_CHANNELS and RATES[0] <= file.samplerate <= RATES[1]):
                raise ValueError(f"its header states {file.channels} channels at {file.samplerate} Hz")
            yield file
    # libsndfile's errors for damaged files are of several classes; each means that this file cannot be read.
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        reason = str(error).rpartition(": ")[2].strip(" .") or type(error).__name__
        raise DataError(f"`{column}`: {place} is not audio that can be read: {reason[:160]}.") from None


def _source(value: Any, column: str) -> Path | io.BytesIO:
    """Return the path or the open bytes of a recording (DataError: it is neither, or no regular file)."""
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        require_inside(value, f"`{column}`")
        value = path if content is None else content
    if isinstance(value, (bytes, bytearray, memoryview)):
        return io.BytesIO(value)
    if not (isinstance(value, (str, Path)) and str(value).strip()):
        raise DataError(f"`{column}` is {shown(value)}; {ALLOWED}.")
    text = str(value)
    if ADDRESS.search(text):
        raise DataError(f"`{column}`: {text} is an address; only files on this machine are read. Fetch it first.")
    file = Path(value)
    try:
        if not file.exists():
            raise DataError(f"`{column}`: there is no file {text!r}.")
        if not file.is_file():
            raise DataError(f"`{column}`: {text!r} is no regular file.")
    except (OSError, ValueError):  # too long for a path, or with a null byte
        raise DataError(f"`{column}`: {text[:80]!r} is no path of a file.") from None
    return file
