"""Speech to text with an encoder alone, by connectionist temporal classification: Wav2Vec2, HuBERT, Parakeet."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import Batch, Example, Features, LoadedModel, Prediction, Recognised, Strategy, TaskTraits
from ftengine.errors import DataError
from ftengine.generation import GenerationOptions
from ftengine_speech.audio import Audio
from ftengine_speech.rows import extractor_of, features_of, read_transcript, recognise_speech, tokenizer_of
from ftengine_speech.transcribing import IGNORED, Transcribing, TranscribingConfig, counts_of, heard, padded_labels
from ftengine_speech.whisper import vocabulary_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

FRAMES_A_SECOND = 50


class SpeechCTCConfig(TranscribingConfig):
    """Options of task speech-ctc."""

    case: Literal["auto", "upper", "lower", "keep"] = Field(
        "auto", description="case of the transcripts; auto: the one that the model's vocabulary has"
    )


class SpeechCTC(Transcribing):
    """Write down what is said, with an encoder and CTC (Graves et al., doi:10.1145/1143844.1143891).

    A row has `audio` and `text`. The labels are those of the model's own tokenizer, and the loss is transformers': the
    sum over the examples, with the padding token as blank. A transcript that is longer than the frames of its recording
    is refused: its loss is infinite.
    """

    name = "speech-ctc"
    traits = TaskTraits(
        example_model="facebook/wav2vec2-base-960h",
        example_data="speech.jsonl",
        pipeline_tag="automatic-speech-recognition",
    )
    head = "ctc"
    Config = SpeechCTCConfig
    evaluators = ("wer",)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._convolutions: list[tuple[int, int, int]] = []

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """See recordings with transcripts, with less certainty than task speech-to-text does."""
        found = recognise_speech(columns, rows)
        return None if found is None else replace(found, certainty=1)

    def set_model(self, loaded: LoadedModel, strategy: Strategy | None) -> None:
        self._convolutions = _convolutions(loaded.module.config, extractor_of(loaded.processor))

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the samples at the model's rate and the labels."""
        audio = self.read_input(example, extractor_of(processor).sampling_rate)
        tokenizer = tokenizer_of(processor)
        text = self.written(read_transcript(example, self.config.text), tokenizer)
        labels = tokenizer(text)["input_ids"]
        if not labels:
            raise DataError(f"`{self.config.text}` holds no letter of the model's vocabulary. Remove the row.")
        needed = len(labels) + sum(a == b for a, b in pairwise(labels))
        if self._convolutions and (frames := self._frames(len(audio.samples))) < needed:
            raise DataError(
                f"`{self.config.text}` has {len(labels)} tokens, which need {needed} frames, and {audio.place} of "
                f"{audio.seconds:.2f} s has {frames}. Is it the transcript of another recording?"
            )
        return Features(
            {**heard(audio), "labels": labels},
            length=max(1, round(audio.seconds * FRAMES_A_SECOND)),
            weight=len(labels),
            truncated=False,
            longest=1,
            unknown=labels.count(tokenizer.unk_token_id),
            counts=counts_of(audio),
        )

    def written(self, text: str, tokenizer: Any) -> str:
        """Return a transcript in the vocabulary's case, without signs that the vocabulary lacks."""
        vocabulary = vocabulary_of(tokenizer)
        case = self.config.case
        if case == "auto":
            letters = [token for token in vocabulary if len(token) == 1 and token.isalpha()]
            upper, lower = any(map(str.isupper, letters)), any(map(str.islower, letters))
            case = "keep" if upper == lower else "upper" if upper else "lower"
        text = text if case == "keep" else getattr(text, case)()
        kept = (x if x in vocabulary or unicodedata.category(x)[0] not in "PS" else " " for x in text)
        return " ".join("".join(kept).split())

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Return the padded samples, and labels padded on the right, (examples, longest)."""
        inputs = features_of(processor, [example.inputs["samples"] for example in features])
        return {**inputs, "labels": padded_labels(features)}

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the examples, their labels); the criterion is CTC's own."""
        return self._losses(model, batch).sum(), int((batch["labels"] != IGNORED).sum())

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's loss and its number of labels."""
        import torch

        with torch.no_grad():
            losses, tokens = self._losses(model, batch), (batch["labels"] != IGNORED).sum(dim=1)
        return [{"loss": x, "tokens": n} for x, n in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return dict(prediction)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        tokenizer = tokenizer_of(processor)
        labels = tokenizer.decode(features.inputs["labels"], group_tokens=False)
        return [(f"{features.inputs['shown']} ", False), (labels, True)]

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return noise of half a second."""
        import torch

        extractor = extractor_of(loaded.processor)
        noise = torch.randn(2, extractor.sampling_rate // 2, generator=torch.Generator().manual_seed(0)) / 10
        return features_of(loaded.processor, list(noise))

    def transcripts(
        self, loaded: LoadedModel, rows: Sequence[Example], audios: Sequence[Audio], options: GenerationOptions
    ) -> list[str]:
        """Return the likeliest token of each frame, collapsed."""
        import torch

        from ftengine.model import evaluating, raw_outputs

        device = next(loaded.module.parameters()).device
        batch = features_of(loaded.processor, [audio.samples for audio in audios])
        with torch.no_grad(), evaluating(loaded.module):
            logits = raw_outputs(loaded.module, {key: value.to(device) for key, value in batch.items()})
        lengths, tokenizer = self._lengths(loaded.module, batch).tolist(), tokenizer_of(loaded.processor)
        likeliest = zip(logits.argmax(dim=-1).tolist(), lengths, strict=True)
        return [tokenizer.decode(ids[:length]).strip() for ids, length in likeliest]

    def _losses(self, model: Any, batch: Batch) -> Tensor:
        """Return (examples,) losses in float32."""
        import torch
        from torch.nn.functional import ctc_loss

        from ftengine.model import raw_outputs

        labels = batch["labels"]
        scores = raw_outputs(model, batch).float().log_softmax(dim=-1).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):  # as transformers, for equal figures
            return ctc_loss(
                scores,
                labels.masked_select(labels != IGNORED),
                self._lengths(model, batch).to(labels.device),
                (labels != IGNORED).sum(dim=1),
                blank=model.config.pad_token_id,
                reduction="none",
                zero_infinity=model.config.ctc_zero_infinity,
            )

    def _lengths(self, model: Any, batch: Batch) -> Tensor:
        """Return (examples,) frames of each recording, its padding included where the model is given no mask."""
        import torch

        mask = batch.get("attention_mask")
        heard = torch.ones_like(batch["input_values"], dtype=torch.long) if mask is None else mask
        count = getattr(model, "_get_feat_extract_output_lengths", None) or model._get_subsampling_output_length
        lengths: Tensor = count(heard.sum(-1)).to(torch.long)
        return lengths

    def _frames(self, samples: int) -> int:
        for kernel, stride, padding in self._convolutions:
            samples = (samples + padding - kernel) // stride + 1
        return max(0, samples)


def _convolutions(config: Any, extractor: Any) -> list[tuple[int, int, int]]:
    """Return (kernel, stride, padding of both ends) of each step from samples to the encoder's frames."""
    encoder: Any = getattr(config, "encoder_config", None)
    if factor := getattr(encoder, "subsampling_factor", None):  # Parakeet, which reads spectrograms
        kernel, hop = encoder.subsampling_conv_kernel_size, extractor.hop_length
        layer = (kernel, encoder.subsampling_conv_stride, (kernel - 1) // 2 * 2)
        return [(hop, hop, 0), *[layer] * int(math.log2(factor))]
    kernels, strides = getattr(config, "conv_kernel", None) or (), getattr(config, "conv_stride", None) or ()
    return [(kernel, stride, 0) for kernel, stride in zip(kernels, strides, strict=False)]
