"""Sequence to sequence: an encoder reads a prompt, a decoder writes its completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, LoadedModel, Prediction, TaskTraits, View
from ftengine.chat import stop_tokens
from ftengine.errors import DataError
from ftengine.generation import GenerationOptions, generate
from ftengine.model.tokens import IGNORED, full_length, length_limit, missing_end, part_within, tokenize, unknown_in
from ftengine_builtins.tasks.generative import LanguageTask
from ftengine_builtins.tasks.language_rows import check_columns, read_text, recognise_pairs

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MAX_LENGTH = 512


class Seq2SeqLMConfig(Config):
    """Options of task seq2seq-lm."""

    prefix: str = Field("", description="text in front of every prompt, as T5 expects it: 'summarize: '")
    max_length: int | None = Field(
        None, ge=2, description=f"longest prompt in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )
    max_completion_length: int | None = Field(
        None,
        ge=1,
        description=f"longest completion in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less",
    )


class Seq2SeqLM(LanguageTask):
    """Turn one text into another with an encoder-decoder (T5, BART, …): translation, summaries, answers.

    A row has `prompt` and `completion`. The encoder reads the prompt with the special tokens of the model's tokenizer;
    only the completion, with its end token, is trained on.
    """

    name = "seq2seq-lm"
    traits = TaskTraits(example_model="google-t5/t5-small", pipeline_tag="text-generation")
    head = "seq2seq-lm"
    Config = Seq2SeqLMConfig
    ahead = 0

    recognise = staticmethod(recognise_pairs)
    check_columns = staticmethod(partial(check_columns, pairs=True))

    def view(self, row: Example) -> View:
        """Return the prompt as input and the completion as target.

        Rows with the same prompt and completion are duplicates.
        """
        pair = [row.get("prompt"), row.get("completion")]
        texts = [value for value in pair if isinstance(value, str)]
        try:
            inputs = [read_text(row, "prompt")]
        except DataError:
            inputs = []
        return View(inputs, pair[1], texts=texts, identity=pair)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        """Replace the prompt; `task.prefix` is added afterwards."""
        read_text(row, "prompt")
        [prompt] = inputs
        return {**row, "prompt": prompt}

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return input_ids of the prompt and labels of the completion, each with its own limit.

        `length` counts both, `longest` and `full_length` (before cutting) the longer one, `weight` the labels. A
        completion that is cut loses its end token.
        """
        prompt = self._prompt(example, processor, max_length)
        limit = length_limit(self.config.max_completion_length, max_length, DEFAULT_MAX_LENGTH, "max_completion_length")
        text = _read(example, "completion")
        part, _ = part_within(processor, text, limit)
        all_ids = processor(text_target=part, verbose=False)["input_ids"]
        all_ids = all_ids + missing_end(all_ids, processor)
        ids, labels, full = prompt.inputs["input_ids"], all_ids[:limit], full_length(len(all_ids), text, part)
        return Features(
            {"input_ids": ids, "labels": labels},
            length=len(ids) + len(labels),
            weight=len(labels),
            truncated=prompt.truncated or full > limit,
            longest=max(len(ids), len(labels)),
            full_length=max(prompt.full_length or 0, full),
            unknown=unknown_in([*ids, *labels], processor),
        )

    def model_inputs(self, model: nn.Module, batch: Batch) -> Batch:
        return {**batch, "decoder_input_ids": shifted(model, batch["labels"])}

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return random tokens for encoder and decoder."""
        from ftengine.model import probe_tokens

        batch = probe_tokens(loaded.module)
        return {**batch, "decoder_input_ids": batch["input_ids"].flip(1)}

    def check_input(self, row: Example) -> None:
        """Refuse a row without a prompt."""
        _read(row, "prompt")

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row's prompt; the row's own completion is not read.

        With several answers, "ended" says whether an answer ended by itself or was cut off at max_new_tokens. Options
        are those of `GenerationOptions`; all examples form one batch.
        """
        chosen = GenerationOptions.read(options)
        answered = self._complete(loaded, rows, chosen)
        return [{"completion": text} | ({} if chosen.sample is None else {"ended": end}) for text, end in answered]

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row; the reference is None without a completion.

        Options are those of `GenerationOptions`, limited to the model's output; all examples form one batch.
        """
        chosen = GenerationOptions.read(options)
        if loaded.max_length is not None and loaded.max_length < chosen.max_new_tokens:
            chosen = chosen.model_copy(update={"max_new_tokens": loaded.max_length})
        answers = zip(rows, self._complete(loaded, rows, chosen), strict=True)
        return [
            {"prompt": row["prompt"], "completion": x, "reference": row.get("completion")} for row, (x, _) in answers
        ]

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode prompt and completion with special tokens visible."""
        prompt, completion = (processor.decode(features.inputs[key]) for key in ("input_ids", "labels"))
        return [(f"{prompt} ", False), (completion, True)]

    def _complete(
        self, loaded: LoadedModel, examples: Sequence[Example], options: GenerationOptions
    ) -> list[tuple[str, bool]]:
        """Return a text for each example, and whether it ended by itself."""
        prompts = [self._prompt(row, loaded.processor, loaded.max_length).inputs["input_ids"] for row in examples]
        samples = options.numbers(len(prompts))
        answers = generate(loaded, prompts, options, stop_tokens(loaded), samples) if prompts else []
        decode = loaded.processor.decode
        return [(decode(ids, skip_special_tokens=True), len(ids) < options.max_new_tokens) for ids in answers]

    def _prompt(self, example: Example, processor: Any, max_length: int | None) -> Features:
        """Return the encoder's input, cut on the right before its special tokens."""
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        return tokenize(processor, self.config.prefix + _read(example, "prompt"), limit=limit)


def _read(example: Example, name: str) -> str:
    """Return a field that must hold some text (DataError: it is missing, no text (a conversation, say), or empty)."""
    if isinstance(example.get(name), (list, tuple)):
        raise DataError(
            f"`{name}` is a list, as of messages; task seq2seq-lm turns one text into another. Give `{name}` as text, "
            "or use task causal-lm for conversations."
        )
    return read_text(example, name)


def shifted(model: Any, labels: Tensor) -> Tensor:
    """Return the decoder's input for `labels`: shifted by one, with padding for `IGNORED`.

    The model's own method is used if it has one: mBART begins with the language, which is at the end of the labels.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    config, moved = model.config.get_text_config(), labels.roll(1, dims=1)
    start = config.decoder_start_token_id
    moved[:, 0] = config.pad_token_id if start is None else start
    return moved.masked_fill(moved == IGNORED, config.pad_token_id)
