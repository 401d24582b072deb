"""Sequence to sequence: an encoder reads a prompt, a decoder writes its completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from ftengine.api import Batch, Config, Criterion, Example, Features, LoadedModel, Prediction, Recognised, Task, View
from ftengine.errors import DataError
from ftengine.model import probe_tokens, raw_outputs
from ftengine_builtins.tasks.generation import ANSWERS, BRIEF, GenerationOptions, complete, stop_tokens
from ftengine_builtins.tasks.language_rows import check_pairs, read_text, recognise_pairs
from ftengine_builtins.tasks.lengths import attention_mask, length_limit, pad, unknown_in
from ftengine_builtins.tasks.token_loss import IGNORED, TokenLoss

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


class Seq2SeqLM(Task):
    """Turn one text into another with an encoder-decoder (T5, BART, …): translation, summaries, answers.

    A row has `prompt` and `completion`. The encoder reads the prompt with the special tokens of the model's
    tokenizer; the completion, with the token that ends it, is all that is trained on.
    """

    name = "seq2seq-lm"
    starter_model = "google-t5/t5-small"
    head = "seq2seq-lm"
    modality = "text"
    Config = Seq2SeqLMConfig
    evaluators = ("perplexity",)
    predicts = frozenset({"loss", "tokens"})
    answers = ANSWERS
    brief = BRIEF
    distributions = True

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._loss = TokenLoss(ahead=0)

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        return recognise_pairs(columns, rows)

    def check_columns(self, columns: Sequence[str]) -> None:
        check_pairs(columns)

    def view(self, row: Example) -> View:
        """See the prompt as input and the completion as target; rows with the same of both are duplicates."""
        pair = [row.get("prompt"), row.get("completion")]
        texts = [value for value in pair if isinstance(value, str)]
        try:
            inputs = [read_text(row, "prompt")]
        except DataError:
            inputs = []
        return View(inputs, pair[1], texts=texts, identity=pair)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        """Put another prompt in place; `task.prefix` is put in front of it afterwards."""
        read_text(row, "prompt")
        [prompt] = inputs
        return {**row, "prompt": prompt}

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return input_ids of the prompt and labels of the completion, each with its own limit.

        `length` counts both, `longest` and `full_length` (before cutting) the longer one, `weight`
        the labels. A completion that is cut loses the token that ends it.
        """
        ids, full = self._prompt(example, processor, max_length)
        limit = length_limit(self.config.max_completion_length, max_length, DEFAULT_MAX_LENGTH, "max_completion_length")
        labels = _ended(processor(text_target=_read(example, "completion"), verbose=False)["input_ids"], processor)
        return {
            "input_ids": ids,
            "labels": labels[:limit],
            "length": len(ids) + len(labels[:limit]),
            "longest": max(len(ids), len(labels[:limit])),
            "weight": len(labels[:limit]),
            "unknown": unknown_in([*ids, *labels[:limit]], processor),
            "full_length": max(full, len(labels)),
            "truncated": len(ids) < full or len(labels) > limit,
        }

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad on the right; input_ids and attention_mask are (examples, longest prompt), labels as wide as theirs."""
        ids = [f["input_ids"] for f in features]
        return {
            "input_ids": pad(ids, processor.pad_token_id or 0),
            "attention_mask": attention_mask(ids),
            "labels": pad([f["labels"] for f in features], IGNORED),
        }

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the completions' tokens, their number)."""
        return self._loss.sum(model, _inputs(model, batch), batch["labels"], criterion)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's summed loss and its number of completion tokens."""
        losses, tokens = self._loss.by_example(model, _inputs(model, batch), batch["labels"])
        return [{"loss": x, "tokens": n} for x, n in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def probe(self, loaded: LoadedModel) -> Batch:
        """Return random tokens for encoder and decoder."""
        batch = probe_tokens(loaded.module)
        return {**batch, "decoder_input_ids": batch["input_ids"].flip(1)}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return raw_outputs(model, batch)

    def check_input(self, row: Example) -> None:
        """Refuse a row without a prompt."""
        _read(row, "prompt")

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row's prompt; a completion that it has is not read.

        Options are those of `GenerationOptions`; all examples form one batch.
        """
        return [{"completion": text} for text in self._complete(loaded, rows, GenerationOptions.read(options))]

    def answer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row; the reference is None where it has no completion.

        Options are those of `GenerationOptions`; no more is generated than the model writes. All examples form one
        batch.
        """
        chosen = GenerationOptions.read(options)
        if loaded.max_length is not None and loaded.max_length < chosen.max_new_tokens:
            chosen = chosen.model_copy(update={"max_new_tokens": loaded.max_length})
        return [
            {"prompt": row["prompt"], "completion": text, "reference": row.get("completion")}
            for text, row in zip(self._complete(loaded, rows, chosen), rows, strict=True)
        ]

    def readable(self, prediction: Prediction) -> dict[str, Any]:
        return dict(prediction)

    def show(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode prompt and completion with special tokens visible."""
        return [(processor.decode(features["input_ids"]) + " ", False), (processor.decode(features["labels"]), True)]

    def _complete(self, loaded: LoadedModel, examples: Sequence[Example], options: GenerationOptions) -> list[str]:
        prompts = [self._prompt(example, loaded.processor, loaded.max_length)[0] for example in examples]
        return complete(loaded, prompts, options, stop_tokens(loaded))

    def _prompt(self, example: Example, processor: Any, max_length: int | None) -> tuple[list[int], int]:
        """Return what the encoder reads, and its length before it was cut (on the right, before special tokens)."""
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        text = self.config.prefix + _read(example, "prompt")
        ids = processor(text, verbose=False)["input_ids"]
        if len(ids) <= limit:
            return ids, len(ids)
        return processor(text, truncation=True, max_length=limit, verbose=False)["input_ids"], len(ids)


def _read(example: Example, name: str) -> str:
    """Return a field that must hold some text.

    Raises:
        DataError: it is missing, no text (a conversation, say), or empty.
    """
    if isinstance(example.get(name), (list, tuple)):
        raise DataError(
            f"`{name}` is a list, as of messages; task seq2seq-lm turns one text into another. Give `{name}` as text, "
            "or take task causal-lm for conversations."
        )
    return read_text(example, name)


def _inputs(model: Any, batch: Batch) -> dict[str, Tensor]:
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": shifted(model, batch["labels"]),
    }


def shifted(model: Any, labels: Tensor) -> Tensor:
    """Return what the decoder reads to predict `labels`: the same one place later, padding for `IGNORED`.

    The model's own way is taken where it has one: mBART begins with the language, which stands at the end.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    config = model.config.get_text_config()
    start = config.decoder_start_token_id
    moved = labels.roll(1, dims=1)
    moved[:, 0] = config.pad_token_id if start is None else start
    return moved.masked_fill(moved == IGNORED, config.pad_token_id)


def _ended(ids: list[int], processor: Any) -> list[int]:
    """Add the token that ends a text, unless the tokenizer did."""
    eos = processor.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
