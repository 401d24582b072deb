"""The common part of audio tasks: options, reading of recordings, and the model's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftengine.api import Batch, Config, Example, Recognised, Task, View, beside
from ftengine.errors import DataError, SourceError, column_names, did_you_mean, shown
from ftengine_speech.audio import Audio, LazyAudio, audio_identity, read_audio, read_header

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LONGEST = 30.0
"""Seconds that Whisper reads at a time, and more than nearly all sentences take."""

AUDIO_COLUMNS = ("audio", "audio_filepath", "audio_path", "wav", "path", "file", "file_name", "filename", "filepath")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text", "raw_transcription")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id", "voice")
LABEL_COLUMNS = ("label", "labels", "class", "category", "emotion", "intent", "command")
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".oga", ".au", ".w64", ".caf")
"""Suffixes of audio files."""


class AudioConfig(Config):
    """Options about the recording."""

    audio: str = Field(
        "audio",
        min_length=1,
        description="column of the recording: a path relative to the data file, a file's bytes, {bytes, path}, or "
        "{array, sampling_rate}",
    )
    max_seconds: float = Field(
        LONGEST, gt=0, le=3600, description="longest recording in seconds; a longer one is refused, never cut"
    )
    outside_files: bool = Field(False, description="open recordings outside of the data file's folder too")


class AudioInput(Task):
    """A task on audio, which has the options of `AudioConfig`."""

    modality = "audio"

    @property
    def file_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.config.audio,)

    def in_folder(self, row: Example, folder: str) -> Example:
        column = self.config.audio
        if column not in row:
            return row
        return {**row, column: beside(row[column], folder, inside=not self.config.outside_files)}

    def input_of(self, row: Example) -> LazyAudio:
        """Return the recording, decoded at each access."""
        return LazyAudio(row.get(self.config.audio), self.config.audio, self.config.max_seconds)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        [audio] = inputs
        return {**row, self.config.audio: audio}

    def read_input(self, row: Example, rate: int) -> Audio:
        """Return the recording at the model's rate (DataError: it cannot be read, is too long, or silent)."""
        audio = read_audio(row.get(self.config.audio), self.config.audio, self.config.max_seconds)
        if audio.silent:
            raise DataError(
                f"`{self.config.audio}`: {audio.place} is silent"
                + (f" for {audio.seconds:.1f} s" if audio.seconds else ", without a single sample")
                + ". Of silence a model learns to invent words. Remove the row, or leave such rows out (data.on_error: "
                "skip)."
            )
        return audio.resampled(rate)

    def check_input(self, row: Example) -> None:
        """Refuse a recording that is missing, of another format or too long by its header."""
        header = read_header(row.get(self.config.audio), self.config.audio)
        if header.seconds > self.longest_answered:
            read_audio(row.get(self.config.audio), self.config.audio, self.longest_answered)

    @property
    def longest_answered(self) -> float:
        """Seconds of a recording that `infer` still reads."""
        return float(self.config.max_seconds)


def view_of(task: Any, row: Example, target: Any, texts: Sequence[str], *, classes: bool = False) -> View:
    """Return the view of a row: rows with equal files are duplicates, whatever their names and transcripts."""
    value = row.get(task.config.audio)
    return View(task.input_of(row), target, classes, texts, lambda: audio_identity(value))


def require_columns(task: Task, columns: Sequence[str], *options: str) -> None:
    """Raise DataError where the data lacks a column that an option names."""
    for option in options:
        column = getattr(task.config, option)
        if column not in columns:
            raise DataError(
                f"the data has no column {column!r} (columns: {column_names(columns) or 'none'}). Name it with "
                f"task.{option}, or rename one with data.columns." + did_you_mean(column, columns)
            )


def read_transcript(row: Example, column: str) -> str:
    """Return a transcript (DataError: it is missing, empty, or no text)."""
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"`{column}` is {shown(text)}; it must be the transcript, as text. Add the transcript, or leave such rows "
            "out (data.on_error: skip)."
        )
    return " ".join(text.split())


def extractor_of(processor: Any) -> Any:
    """Return a processor's feature extractor (SourceError: it has none)."""
    extractor = getattr(processor, "feature_extractor", processor)
    if not hasattr(extractor, "sampling_rate"):
        raise SourceError(
            f"the model came with {type(processor).__name__ if processor is not None else 'no processor'}, and audio "
            "needs a feature extractor. Put its preprocessor_config.json into the model's folder."
        )
    return extractor


def tokenizer_of(processor: Any) -> Any:
    """Return a processor's tokenizer (SourceError: it has none)."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise SourceError(
            "the model came without a tokenizer, so it cannot write text. Put its tokenizer.json into the model's "
            "folder, or use task audio-classification."
        )
    return tokenizer


def features_of(processor: Any, waves: Sequence[np.ndarray | Tensor]) -> Batch:
    """Return a model's input for some recordings at its rate: {input_features: (n, mels, frames)}, or
    {input_values: (n, samples)} with attention_mask.

    Whisper's features are padded with silence to the window that it reads.
    """
    import numpy as np
    import torch

    extractor = extractor_of(processor)
    fixed = hasattr(extractor, "nb_max_frames")  # Whisper's window
    options = {} if fixed else {"padding": "longest"}
    arrays = [np.asarray(wave, dtype=np.float32) for wave in waves]
    with torch.autocast("cpu", enabled=False):  # a spectrogram in bfloat16 is another one
        inputs = extractor(arrays, sampling_rate=extractor.sampling_rate, return_tensors="pt", **options)
    return dict(inputs)


def recognise_speech(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise recordings with transcripts; rows are split by speaker if there is a column of speakers."""
    audio, text, speaker = (_first(names, columns) for names in (AUDIO_COLUMNS, TEXT_COLUMNS, SPEAKER_COLUMNS))
    values = [row.get(audio) for row in rows if audio and row.get(audio)]
    if audio is None or text is None or not values or not all(map(_is_audio, values)):
        return None
    renamed = {ours: theirs for ours, theirs in (("audio", audio), ("text", text)) if ours != theirs}
    speakers = {str(row[speaker]) for row in rows if speaker and row.get(speaker)}
    split = {"by": "group", "column": speaker} if len(speakers) > 1 else {}
    note = "Held-out rows are of speakers that training lacks (data.split)." if split else ""
    return Recognised(3, renamed, note=note, split=split)


def recognise_labelled(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise recordings with labels."""
    audio, label = (_first(names, columns) for names in (AUDIO_COLUMNS, LABEL_COLUMNS))
    values = [row.get(audio) for row in rows if audio and row.get(audio)]
    if audio is None or label is None or not values or not all(map(_is_audio, values)):
        return None
    return Recognised(3, {ours: theirs for ours, theirs in (("audio", audio), ("label", label)) if ours != theirs})


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    by_lower_name = {column.lower(): column for column in columns}
    return next((by_lower_name[name] for name in names if name in by_lower_name), None)


def _is_audio(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("array") is not None or _is_audio(value.get("path") or value.get("bytes"))
    if isinstance(value, bytes):
        return value[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM") or value[:3] == b"ID3" or value[:2] == b"\xff\xfb"
    return isinstance(value, str) and value.lower().endswith(SUFFIXES)
