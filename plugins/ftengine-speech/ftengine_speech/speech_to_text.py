"""Speech to text with an encoder-decoder: Whisper, Moonshine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import Batch, Example, Features, LoadedModel, Prediction, Strategy, TaskTraits
from ftengine.errors import DataError
from ftengine.generation import GenerationOptions
from ftengine_speech.audio import Audio
from ftengine_speech.rows import extractor_of, features_of, read_transcript, recognise_speech, tokenizer_of
from ftengine_speech.states import EncoderStates, recordings, with_features
from ftengine_speech.transcribing import IGNORED, Transcribing, TranscribingConfig, counts_of, heard, padded_labels
from ftengine_speech.whisper import is_multilingual, is_whisper, language_code, prompt_tokens, require_language

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftengine.model import Criterion

POSITIONS_A_SECOND = 50
"""States of Whisper's encoder for a second of audio."""
LONGEST_ANSWERED = 4 * 3600.0
"""Seconds of a recording that Whisper transcribes window by window."""


class SpeechToTextConfig(TranscribingConfig):
    """Options of task speech-to-text."""

    keep_states: int = Field(
        1024,
        ge=0,
        description="MiB of memory for states of an encoder in which nothing trains, so that each recording "
        "is heard once a run; 0 hears it in every epoch",
    )
    writes: Literal["transcribe", "translate"] = Field(
        "transcribe", description="Whisper's task: what is said, or its translation into English"
    )


class SpeechToText(Transcribing):
    """Write down what is said, with an encoder-decoder (Whisper, Moonshine).

    A row has `audio` and `text`. Labels are the tokens that the model itself writes: Whisper's start, language, task
    and `<|notimestamps|>`, then the transcript and the end token; the decoder's first token is not trained, as the
    model is given it.
    """

    name = "speech-to-text"
    traits = TaskTraits(
        example_model="openai/whisper-tiny.en",
        example_data="speech.jsonl",
        pipeline_tag="automatic-speech-recognition",
    )
    head = "speech-seq2seq"
    Config = SpeechToTextConfig
    evaluators = ("wer", "perplexity")
    short_generation = {"max_new_tokens": 64}  # noqa: RUF012
    predicts_probabilities = True

    recognise = staticmethod(recognise_speech)

    def __init__(self, config: Any = None) -> None:
        from ftengine.model import TokenLoss

        super().__init__(config)
        self._loss = TokenLoss(ahead=0)
        self._states = EncoderStates(self.config.keep_states << 20)
        self._processor: Any = None

    def set_model(self, loaded: LoadedModel, strategy: Strategy | None) -> None:
        self._processor, tokenizer = loaded.processor, tokenizer_of(loaded.processor)
        require_language(self.config.language, self.config.language_column, tokenizer)
        if self.config.keep_states and is_whisper(tokenizer):
            self._states.follow(loaded, prepared=strategy is not None)

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the samples at the model's rate and the labels; `longest` counts the decoder's tokens.

        A transcript that is longer than the decoder writes is refused, as a cut one would teach to stop early.
        """
        audio = self.read_input(example, extractor_of(processor).sampling_rate)
        text = read_transcript(example, self.config.text)
        labels = self.labels_of(text, example, processor)
        if max_length is not None and len(labels) > max_length:
            raise DataError(
                f"`{self.config.text}` has {len(labels)} tokens, and the model writes at most {max_length}. Cut the "
                "recording and its transcript at a pause."
            )
        return Features(
            {**heard(audio), "labels": labels},
            length=round(audio.seconds * POSITIONS_A_SECOND) + len(labels),
            weight=len(labels),
            truncated=False,
            longest=len(labels),
            counts=counts_of(audio),
        )

    def labels_of(self, text: str, example: Example, processor: Any) -> list[int]:
        """Return what the decoder writes after its start token: the rest of its prompt, the transcript, the end."""
        tokenizer = tokenizer_of(processor)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not is_whisper(tokenizer):
            return [*ids, tokenizer.eos_token_id]
        prompt = prompt_tokens(tokenizer, self.language_of(example, processor), self.config.writes)
        return [*prompt[1:], *ids, tokenizer.eos_token_id]

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Return the model's features, or samples where states are kept; labels padded, (examples, longest)."""
        waves = [example.inputs["samples"] for example in features]
        inputs = recordings(waves) if self._states.kept else features_of(processor, waves)
        return {**inputs, "labels": padded_labels(features)}

    def features(self, batch: Batch) -> Batch:
        """Return a batch with features where `collate` left samples, as their states may be kept."""
        return with_features(batch, self._processor)

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the labelled tokens, their number)."""
        return self._loss.sum(model, self._inputs(model, batch), batch["labels"], criterion)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's summed loss and its number of labelled tokens."""
        losses, tokens = self._loss.by_example(model, self._inputs(model, batch), batch["labels"])
        return [{"loss": x, "tokens": n} for x, n in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        from ftengine.model import raw_outputs

        own = batch if "decoder_input_ids" in batch else _decoded(model, batch)
        return raw_outputs(model, self.features(own))

    def _inputs(self, model: nn.Module, batch: Batch) -> Batch:
        return self._states.inputs(model, _decoded(model, batch), self._processor)

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        if not prediction.get("tokens"):
            return dict(prediction)
        return {"loss per token": prediction["loss"] / prediction["tokens"], "tokens": prediction["tokens"]}

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the recording's name and length, and the labels with special tokens visible."""
        tokenizer = tokenizer_of(processor)
        start = prompt_tokens(tokenizer, "en", self.config.writes)[:1] if is_whisper(tokenizer) else []
        labels = tokenizer.decode(features.inputs["labels"], skip_special_tokens=False)
        lead = f"{features.inputs['shown']} {tokenizer.decode(start)}"
        return [(lead, False), (labels, True)]

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return noise of a second and random tokens."""
        import torch

        generator = torch.Generator().manual_seed(0)
        rate = extractor_of(loaded.processor).sampling_rate
        noise = torch.randn(2, rate, generator=generator) / 10
        module: Any = loaded.module
        size = module.get_output_embeddings().out_features
        tokens = torch.randint(size, (2, 8), generator=generator)
        return {**features_of(loaded.processor, list(noise)), "decoder_input_ids": tokens}

    @property
    def longest_answered(self) -> float:
        return LONGEST_ANSWERED

    def write_config(self, loaded: LoadedModel, directory: Path) -> None:
        """State language and task in a saved model's generation config, so that it writes as it was tuned."""
        file = directory / "generation_config.json"
        tokenizer = tokenizer_of(loaded.processor)
        if not (file.is_file() and is_whisper(tokenizer) and is_multilingual(tokenizer) and self.config.language):
            return
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings |= {"language": self.language_of({}, loaded.processor), "task": self.config.writes}
        settings.pop("forced_decoder_ids", None)  # which these two replace
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def transcripts(
        self, loaded: LoadedModel, rows: Sequence[Example], audios: Sequence[Audio], options: GenerationOptions
    ) -> list[str]:
        """Return what the model writes; Whisper reads a recording that is longer than its window by windows."""
        from ftengine_speech.transcribe import transcribe

        tokenizer, told = tokenizer_of(loaded.processor), dict[str, Any]()
        if is_whisper(tokenizer) and is_multilingual(tokenizer):
            languages = [self.language_of(row, loaded.processor) for row in rows]
            if None in languages:
                raise DataError(
                    f"`{self.config.language_column}`: the row states no language, which this Whisper model must be "
                    "told. State it, or set task.language for such rows."
                )
            told = {"language": languages, "task": self.config.writes}
        return transcribe(loaded, audios, options.max_new_tokens, told, self._states)

    def language_of(self, row: Example, processor: Any) -> str | None:
        """Return the code of a row's language, of Whisper's if the model is one; None where nothing states it."""
        tokenizer = tokenizer_of(processor)
        if not (is_whisper(tokenizer) and is_multilingual(tokenizer)):
            return super().language_of(row, processor)
        stated = self.stated_language(row) or getattr(tokenizer, "language", None)
        return None if stated is None else language_code(str(stated), tokenizer)


def _decoded(model: Any, batch: Batch) -> Batch:
    """Return a batch with the decoder's input: the labels, shifted by one, after the token that it starts with."""
    labels = batch["labels"]
    moved, padding = labels.roll(1, dims=1), model.config.pad_token_id or 0  # nothing attends to it
    moved[:, 0] = model.config.decoder_start_token_id
    return {**batch, "decoder_input_ids": moved.masked_fill(moved == IGNORED, padding)}
