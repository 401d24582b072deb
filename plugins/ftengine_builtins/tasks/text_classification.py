"""Classification of a text or a pair of texts, and regression on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from ftengine.api import Batch, Example, Features, Recognised, View
from ftengine.errors import DataError
from ftengine_builtins.tasks.labelled import LabelledConfig, LabelledTask
from ftengine_builtins.tasks.lengths import attention_mask, length_limit, pad, unknown_in
from ftengine_builtins.tasks.recognising import recognise_text
from ftengine_builtins.tasks.shown import shown

DEFAULT_MAX_LENGTH = 512


class TextClassificationConfig(LabelledConfig):
    """Options of task text-classification."""

    text: str = Field("text", min_length=1, description="column of the text")
    pair: str | None = Field(None, min_length=1, description="column of a second text that goes with the first")
    max_length: int | None = Field(
        None, ge=2, description=f"longest input in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )


class TextClassification(LabelledTask):
    """Give a text, or a pair of texts, one label, several labels, or a number.

    With kind: auto, lists as labels mean several labels a row, numbers with a fractional part mean
    regression, everything else one label a row. Several labels may also be one text with `separator` between
    them (kind: multi). Label ids follow the sorted names.
    """

    name = "text-classification"
    starter_model = "distilbert/distilbert-base-uncased"
    head = "sequence-classification"
    modality = "text"
    Config = TextClassificationConfig

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        return recognise_text(columns, rows)

    def columns(self) -> dict[str, str | None]:
        return {"text": self.config.text, "pair": self.config.pair, "label": self.config.label}

    def view(self, row: Example) -> View:
        """See the text, or both of a pair, as inputs; rows with the same are duplicates, whatever their labels.

        So contradicting labels stay in one split.
        """
        text, pair = row.get(self.config.text), row.get(self.config.pair) if self.config.pair else None
        try:
            inputs = self._texts(row)
        except DataError:
            inputs = []
        texts = [value for value in (text, pair) if isinstance(value, str)]
        return View(inputs, self.named(row), True, texts, [text, pair])

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        self._texts(row)
        columns = [column for column in (self.config.text, self.config.pair) if column is not None]
        return {**row, **dict(zip(columns, inputs, strict=True))}

    def read(self, example: Example, processor: Any, max_length: int | None) -> Features:
        """Return the tokenizer's fields; of a pair that is too long, the longer text is cut first."""
        texts = self._texts(example)
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        encoded = processor(*texts, return_attention_mask=False, verbose=False)
        full = len(encoded["input_ids"])
        truncated = full > limit
        if truncated:
            encoded = processor(*texts, return_attention_mask=False, truncation=True, max_length=limit)
        ids = encoded["input_ids"]
        counts = {"length": len(ids), "full_length": full, "truncated": truncated}
        return {**encoded, **counts, "unknown": unknown_in(ids, processor)}

    def stack(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad on the right; every tensor is (examples, longest) int64."""
        ids = [f["input_ids"] for f in features]
        batch = {"input_ids": pad(ids, processor.pad_token_id or 0), "attention_mask": attention_mask(ids)}
        if "token_type_ids" in features[0]:
            batch["token_type_ids"] = pad([f["token_type_ids"] for f in features], 0)
        return batch

    def check_input(self, row: Example) -> None:
        """Refuse a row whose texts are missing or empty."""
        self._texts(row)

    def show(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the text as the model reads it, and what it is to answer."""
        return [(processor.decode(features["input_ids"]), False), (self.told(features["label"]), True)]

    def _texts(self, example: Example) -> list[str]:
        texts = []
        for column in (self.config.text, self.config.pair):
            if column is None:
                continue
            value = example.get(column)
            if not isinstance(value, str):
                raise DataError(f"`{column}` is {shown(value)}; it must be text.")
            if not value.strip():
                raise DataError(f"`{column}` is empty; it must hold some text.")
            texts.append(value)
        return texts
