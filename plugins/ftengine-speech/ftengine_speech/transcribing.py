"""The common part of tasks that write down what is said: columns, labels, answers and their language."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftengine.api import Example, Features, GenerativeTask, LoadedModel, Prediction, View
from ftengine.errors import InputError
from ftengine.generation import GenerationOptions
from ftengine_speech.audio import Audio, read_audio
from ftengine_speech.noise import signal_to_noise
from ftengine_speech.rows import AudioConfig, AudioInput, extractor_of, require_columns, view_of

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
TOGETHER = 8
"""Recordings that are transcribed in one batch."""


class TranscribingConfig(AudioConfig):
    """Options of tasks that transcribe."""

    text: str = Field("text", min_length=1, description="column of the transcript")
    language: str | None = Field(
        None,
        description="language of the transcripts, a code or an English name (de, german): Whisper's multilingual "
        "models are told it, and evaluators write both texts alike by it; null: English",
    )
    language_column: str | None = Field(None, description="column with the language of each row, instead of `language`")


class Transcribing(AudioInput, GenerativeTask):
    """A task that writes transcripts; a subclass says by which labels and loss, and how a batch is answered."""

    predicts = frozenset({"loss", "tokens"})
    generates = frozenset({"completion", "reference", "prompt", "seconds", "snr", "language"})

    def check_columns(self, columns: Sequence[str]) -> None:
        require_columns(self, columns, "audio", "text", *(["language_column"] if self.config.language_column else []))

    def view(self, row: Example) -> View:
        """Return the recording as input and the transcript as target."""
        text = row.get(self.config.text)
        return view_of(self, row, text, [text] if isinstance(text, str) else [])

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"text": transcript} for each row's recording; options are those of `GenerationOptions`."""
        return [{"text": text} for text, _ in self._answers(loaded, rows, options, self.longest_answered)]

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return the model's transcript of each row, with the row's own, its seconds and estimated SNR in dB."""
        return [
            {
                "prompt": audio.place,
                "completion": text,
                "reference": row.get(self.config.text),
                "seconds": audio.seconds,
                "snr": signal_to_noise(audio),
                "language": self.language_of(row, loaded.processor) or "en",
            }
            for row, (text, audio) in zip(
                rows, self._answers(loaded, rows, options, self.config.max_seconds), strict=True
            )
        ]

    @abstractmethod
    def transcripts(
        self, loaded: LoadedModel, rows: Sequence[Example], audios: Sequence[Audio], options: GenerationOptions
    ) -> Sequence[str]:
        """Return the likeliest transcript of each recording of a batch, given at the model's rate."""

    def language_of(self, row: Example, processor: Any) -> str | None:
        """Return the code of a row's language; None where neither row nor recipe states it."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        if (stated := self.stated_language(row)) is None:
            return None
        name = stated.strip().lower()
        return TO_LANGUAGE_CODE.get(name, name).partition("-")[0]

    def stated_language(self, row: Example) -> str | None:
        """Return a row's language as the row or the recipe states it."""
        column = self.config.language_column
        stated = (row.get(column) if column else None) or self.config.language
        return None if stated is None else str(stated)

    def _answers(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None, longest: float
    ) -> Iterator[tuple[str, Audio]]:
        """Yield a text and the recording of each row."""
        chosen = GenerationOptions.read(options)
        if chosen.temperature:
            raise InputError("option 'temperature': transcripts are the likeliest tokens; 0 is allowed.")
        column, rate = self.config.audio, extractor_of(loaded.processor).sampling_rate
        for start in range(0, len(rows), TOGETHER):
            some = rows[start : start + TOGETHER]
            audios = [read_audio(row.get(column), column, longest).resampled(rate) for row in some]
            yield from zip(self.transcripts(loaded, some, audios, chosen), audios, strict=True)


def padded_labels(features: Sequence[Features]) -> Tensor:
    """Return the labels, padded on the right, (examples, longest)."""
    import torch

    labels = [torch.tensor(example.inputs["labels"]) for example in features]
    return torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def heard(audio: Audio) -> dict[str, Any]:
    """Return what an encoded row keeps of its recording: samples, and how it is shown."""
    import torch

    shown = f"{audio.place}, {audio.seconds:.2f} s at {audio.rate} Hz"
    return {"samples": torch.from_numpy(audio.samples), "shown": shown}


def counts_of(audio: Audio) -> dict[str, int]:
    """Return what is counted of a recording."""
    return {"seconds": max(1, round(audio.seconds)), "clipped": int(audio.clipped)}
