"""Classification of recordings, and regression on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftengine.api import Batch, Example, Features, LoadedModel, Recognised, TaskTraits, View
from ftengine_builtins.tasks import LabelledTask
from ftengine_speech.rows import AudioConfig, AudioInput, extractor_of, features_of, recognise_labelled, view_of

if TYPE_CHECKING:
    from torch import Tensor

FRAMES_A_SECOND = 50


class AudioClassificationConfig(AudioConfig, LabelledTask.Config):
    """Options of task audio-classification."""


class AudioClassification(AudioInput, LabelledTask):
    """Give a recording one label, several labels, or a number (Wav2Vec2, HuBERT, Whisper's encoder, AST).

    A row has `audio` and `label`. Silence is refused, unless a label calls for it: give such rows some noise.
    """

    name = "audio-classification"
    traits = TaskTraits(
        example_model="facebook/wav2vec2-base", example_data="sounds.jsonl", pipeline_tag="audio-classification"
    )
    head = "audio-classification"
    modality = "audio"
    Config = AudioClassificationConfig

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        return recognise_labelled(columns, rows)

    def columns(self) -> dict[str, str | None]:
        return {"audio": self.config.audio, "label": self.config.label}

    def view(self, row: Example) -> View:
        """Return the recording as input and the label as target."""
        return view_of(self, row, self.named(row), (), classes=True)

    def read(self, example: Example, processor: Any, max_length: int | None) -> Features:
        """Return the samples at the model's rate."""
        import torch

        audio = self.read_input(example, extractor_of(processor).sampling_rate)
        shown = f"{audio.place}, {audio.seconds:.2f} s at {audio.rate} Hz"
        return Features(
            {"samples": torch.from_numpy(audio.samples), "shown": shown},
            length=max(1, round(audio.seconds * FRAMES_A_SECOND)),
            weight=1,
            truncated=False,
            longest=1,
        )

    def stack(self, features: Sequence[Features], processor: Any) -> Batch:
        return features_of(processor, [example.inputs["samples"] for example in features])

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return noise of half a second."""
        import torch

        rate = extractor_of(loaded.processor).sampling_rate
        noise: Tensor = torch.randn(2, rate // 2, generator=torch.Generator().manual_seed(0)) / 10
        return features_of(loaded.processor, list(noise))

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        return [(f"{features.inputs['shown']} ", False), (self.label_text(features.inputs["label"]), True)]
