"""Classification of a text or a pair of texts, and regression on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ftengine.api import Batch, Example, Features, LoadedModel, TaskTraits, View
from ftengine.errors import DataError
from ftengine.model.tokens import length_limit, set_truncation_side, stack_tokens, tokenize
from ftengine_builtins.tasks.labelled import RELEVANCE, LabelledConfig, LabelledTask
from ftengine_builtins.tasks.language_rows import read_text
from ftengine_builtins.tasks.recognising import recognise_text

DEFAULT_MAX_LENGTH = 512
CUT_IN_FRONT = "cut_in_front"
"""The count of examples whose beginning was cut off."""


class TextClassificationConfig(LabelledConfig):
    """Options of task text-classification."""

    text: str = Field("text", min_length=1, description="column of the text")
    pair: str | None = Field(None, min_length=1, description="column of the second text of a pair")
    kind: Literal["auto", "single", "multi", "regression", "relevance"] = Field(  # type: ignore[assignment]
        "auto",
        description="single: one label a row; multi: several; regression: a number; auto decides from the "
        "training data; relevance: whether the pair's second text answers the first (1) or not (0)",
    )
    max_length: int | None = Field(
        None, ge=2, description=f"longest input in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )
    truncate: Literal["right", "left"] | None = Field(
        None, description="which end of a longer text is cut off; null: the tokenizer's own, mostly right"
    )


class TextClassification(LabelledTask):
    """Give a text, or a pair of texts, one label, several labels, or a number.

    With kind: auto, lists as labels mean several labels a row, numbers with a fractional part mean
    regression, everything else one label a row. Several labels may also be one text with `separator` between
    them (kind: multi). Label ids follow the sorted names.
    """

    name = "text-classification"
    traits = TaskTraits(example_model="distilbert/distilbert-base-uncased", pipeline_tag="text-classification")
    head = "sequence-classification"
    modality = "text"
    Config = TextClassificationConfig

    recognise = staticmethod(recognise_text)

    @property
    def evaluators(self) -> tuple[str, ...]:
        """Those for labels; for a reranker the one for rankings, as few documents are relevant."""
        ranks = self.config.kind == RELEVANCE and self.config.text == "text"  # where that evaluator looks for queries
        return ("reranking",) if ranks else super().evaluators

    def columns(self) -> dict[str, str | None]:
        return {"text": self.config.text, "pair": self.config.pair, "label": self.config.label}

    def view(self, row: Example) -> View:
        """Return the text, or both of a pair, as inputs.

        Rows with the same texts are duplicates, whatever their labels. So contradicting labels stay in one split.
        """
        values = [row.get(column) if column else None for column in (self.config.text, self.config.pair)]
        try:
            inputs = list(self._texts(row).values())
        except DataError:
            inputs = []
        return View(inputs, self.named(row), True, [value for value in values if isinstance(value, str)], values)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        return {**row, **dict(zip(self._texts(row), inputs, strict=True))}

    def stack(self, features: Sequence[Features], processor: Any) -> Batch:
        return stack_tokens([example.inputs for example in features], processor)

    def read(self, example: Example, processor: Any, max_length: int | None) -> Features:
        """Return the tokenizer's fields; of a pair that is too long, the longer text is cut first."""
        texts, side = self._texts(example).values(), self.config.truncate
        features = tokenize(processor, *texts, limit=self.limit(max_length), side=side)
        if features.truncated and (side or processor.truncation_side) == "left":
            features.counts = {CUT_IN_FRONT: 1}
        return features

    def limit(self, max_length: int | None) -> int:
        """Return the longest input in tokens, given the model's limit."""
        return length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)

    def set_model(self, loaded: LoadedModel, strategy: Any) -> None:
        """Set the tokenizer's truncation side to the option, so that the saved tokenizer has it too."""
        side = self.config.truncate
        set_truncation_side(loaded.processor, side)
        if side is not None and hasattr(loaded.processor, "init_kwargs"):
            loaded.processor.init_kwargs["truncation_side"] = side  # which save_pretrained writes

    def check_input(self, row: Example) -> None:
        """Refuse a row whose texts are missing or empty."""
        self._texts(row)

    def write_config(self, loaded: LoadedModel, directory: Path) -> None:
        """Write how CrossEncoder scores pairs, of a reranker."""
        from ftengine_builtins.tasks.sentence_transformers import write_activation

        if self.config.kind == RELEVANCE:
            write_activation(directory)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the text as the model reads it, and its label."""
        return [
            (processor.decode(features.inputs["input_ids"]), False),
            (self.label_text(features.inputs["label"]), True),
        ]

    def _texts(self, example: Example) -> dict[str, str]:
        columns = (self.config.text, self.config.pair)
        return {column: read_text(example, column) for column in columns if column is not None}
