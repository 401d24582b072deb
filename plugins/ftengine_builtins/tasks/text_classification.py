"""Classification of a text or a pair of texts, and regression on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ftengine.api import Batch, Config, Example, Features, Labels, LoadedModel, Prediction, Task
from ftengine.errors import DataError, InputError, did_you_mean
from ftengine_builtins.tasks.class_labels import in_order, kind_of, read_name, read_names, read_number, unknown_label
from ftengine_builtins.tasks.lengths import attention_mask, length_limit, pad
from ftengine_builtins.tasks.modes import evaluating
from ftengine_builtins.tasks.shown import shown

DEFAULT_MAX_LENGTH = 512

PREDICTS = {"single": ("label", "predicted"), "multi": ("label", "predicted"), "regression": ("target", "value")}


class TextClassificationConfig(Config):
    """Options of task text-classification."""

    text: str = Field("text", min_length=1, description="column of the text")
    pair: str | None = Field(None, min_length=1, description="column of a second text that goes with the first")
    label: str = Field("label", min_length=1, description="column of the label")
    kind: Literal["auto", "single", "multi", "regression"] = Field(
        "auto", description="one label a row, several, or a number; auto decides from the training data"
    )
    separator: str = Field(";", min_length=1, description="between the names where several labels are one text")
    max_length: int | None = Field(
        None, ge=2, description=f"longest input in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )


class TextClassification(Task):
    """Give a text, or a pair of texts, one label, several labels, or a number.

    With kind: auto, lists as labels mean several labels a row, numbers with a fractional part mean
    regression, everything else one label a row. Several labels may also be one text with `separator` between
    them (kind: multi). Label ids follow the sorted names.
    """

    name = "text-classification"
    head = "sequence-classification"
    Config = TextClassificationConfig
    default_evaluators = ("classification",)
    predicts = frozenset(PREDICTS["single"])

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        if self.config.kind == "regression":
            self._learn("regression", [self.config.label])

    def check(self, columns: Sequence[str]) -> None:
        wanted = {"text": self.config.text, "pair": self.config.pair, "label": self.config.label}
        for option, column in wanted.items():
            if column is not None and column not in columns:
                raise DataError(
                    f"the data has no column {column!r} (columns: {', '.join(columns) or 'none'}). Name it with "
                    f"task.{option}, or rename one with data.columns." + did_you_mean(column, columns)
                )

    def bind(self, splits: Mapping[str, Iterable[Example]]) -> None:
        """Learn kind and names from training. Rows without a usable label are left to `encode` to refuse.

        Raises:
            DataError: training has fewer than two labels, or another split has one that training lacks.
        """
        kind = self.config.kind
        if kind == "auto":
            kind = kind_of(
                value for example in splits["train"] if (value := example.get(self.config.label)) is not None
            )
        if kind == "regression":
            self._learn(kind, [self.config.label])
            return
        names = in_order(name for example in splits["train"] for name in self._names(example, kind))
        if not names or (kind == "single" and len(names) == 1):
            found = f"only the label {names[0]!r}" if names else "no label"
            raise DataError(f"the training data has {found} in column {self.config.label!r}; at least two are needed.")
        self._learn(kind, names)
        for split, examples in splits.items():
            for example in examples if split != "train" else ():
                for name in self._names(example, kind):
                    if name not in self._ids:
                        raise DataError(f"{unknown_label(name, names)} Put it into training too ({split} split).")

    def state(self) -> dict[str, Any]:
        return {"kind": self.labels.kind, "names": list(self.labels.names)} if self.labels else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._learn(state["kind"], state["names"])

    def identity(self, example: Example) -> Any:
        """Two rows are duplicates when their texts are equal, so that contradicting labels stay in one split."""
        return [example.get(self.config.text), example.get(self.config.pair) if self.config.pair else None]

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the tokenizer's fields, and `label`: an id, a list of 0 and 1, or a number."""
        encoded = self._encode(self._texts(example), processor, max_length)
        return {**encoded, "label": self._target(example), "weight": 1}

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad on the right; labels are int64 (examples,), or fp32 (examples, labels) for several or a number."""
        batch = _stack(features, processor)
        if self._kind == "single":
            return {**batch, "labels": torch.tensor([f["label"] for f in features])}
        labels = torch.tensor([f["label"] for f in features], dtype=torch.float32)
        return {**batch, "labels": labels.reshape(len(features), -1)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return (sum over examples, their number) of cross entropy, mean binary cross entropy or squared error."""
        losses = self._losses(_logits(model, batch), batch["labels"])
        return losses.sum(), len(losses)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's truth, answer and loss; {label, predicted, scores} or {target, value}.

        With several labels, label and predicted are lists of 0 and 1, one number a name.
        """
        logits, labels = _logits(model, batch), batch["labels"]
        losses = self._losses(logits, labels).tolist()
        if self._kind == "regression":
            keys, columns = ("target", "value", "loss"), (labels[:, 0].tolist(), logits[:, 0].tolist(), losses)
        else:
            truth = labels.tolist() if self._kind == "single" else labels.long().tolist()
            keys = ("label", "predicted", "scores", "loss")
            columns = (truth, self._decide(logits), self._scores(logits), losses)
        return [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]

    def check_input(self, example: Example) -> None:
        """Refuse a row whose texts are missing or empty."""
        self._texts(example)

    @torch.no_grad()
    def infer(
        self, loaded: LoadedModel, examples: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"label": name, "scores": {name: p}}, {"labels": [names], "scores"}, or {"value": number}.

        There are no options.
        """
        if options:
            raise InputError(f"unknown option {next(iter(options))!r}; task {self.name!r} has none for predictions.")
        if not examples:
            return []
        features = [self._encode(self._texts(x), loaded.processor, loaded.max_length) for x in examples]
        device = next(loaded.module.parameters()).device
        batch = {key: value.to(device) for key, value in _stack(features, loaded.processor).items()}
        with evaluating(loaded.module):
            logits = _logits(loaded.module, batch)
        if self._kind == "regression":
            return [{"value": value} for value in logits[:, 0].tolist()]
        scores = [dict(zip(self.labels.names, row, strict=True)) for row in self._scores(logits)]
        decided = zip(self._decide(logits), scores, strict=True)
        if self._kind == "single":
            return [{"label": self.labels.names[i], "scores": row} for i, row in decided]
        return [{"labels": self._switched_on(indicators), "scores": row} for indicators, row in decided]

    def show(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Return the text as the model reads it, and what it is to answer."""
        text, label = processor.decode(features["input_ids"]), features["label"]
        if self._kind == "single":
            label = self.labels.names[label]
        elif self._kind == "multi":
            label = ", ".join(self._switched_on(label)) or "(none)"
        return [(text, False), (str(label), True)]

    def _learn(self, kind: str, names: Sequence[str]) -> None:
        self.labels = Labels(kind, tuple(names))
        self._kind, self._ids = kind, {name: i for i, name in enumerate(names)}
        self.predicts = frozenset(PREDICTS[kind])
        self.default_evaluators = ("regression",) if kind == "regression" else ("classification",)

    def _names(self, example: Example, kind: str) -> Iterator[str]:
        """Yield a row's label names; none where the label cannot be read."""
        value = example.get(self.config.label)
        try:
            yield from read_names(value, self.config.separator) if kind == "multi" else [read_name(value)]
        except DataError:
            return

    def _target(self, example: Example) -> int | float | list[int]:
        value = example.get(self.config.label)
        if self._kind == "regression":
            return read_number(value)
        names = read_names(value, self.config.separator) if self._kind == "multi" else [read_name(value)]
        for name in names:
            if name not in self._ids:
                raise unknown_label(name, self.labels.names)
        if self._kind == "single":
            return self._ids[names[0]]
        return [int(name in names) for name in self.labels.names]

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

    def _encode(self, texts: list[str], processor: Any, max_length: int | None) -> Features:
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        encoded = processor(*texts, return_attention_mask=False, verbose=False)
        truncated = len(encoded["input_ids"]) > limit
        if truncated:  # of a pair, the longer text is cut first
            encoded = processor(*texts, return_attention_mask=False, truncation=True, max_length=limit)
        return {**encoded, "length": len(encoded["input_ids"]), "truncated": truncated}

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (examples,) losses."""
        if self._kind == "single":
            return F.cross_entropy(logits, labels, reduction="none")
        labels = labels.to(logits.dtype)
        if self._kind == "multi":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
        return F.mse_loss(logits, labels, reduction="none").mean(dim=1)

    def _decide(self, logits: Tensor) -> list[Any]:
        """Return the likeliest id, or for several labels 1 where a label is likelier than not."""
        return (logits.argmax(dim=1) if self._kind == "single" else (logits > 0).long()).tolist()

    def _scores(self, logits: Tensor) -> list[list[float]]:
        return (logits.softmax(dim=1) if self._kind == "single" else logits.sigmoid()).tolist()

    def _switched_on(self, indicators: list[int]) -> list[str]:
        return [name for name, on in zip(self.labels.names, indicators, strict=True) if on]


def _stack(features: Sequence[Features], processor: Any) -> Batch:
    ids = [f["input_ids"] for f in features]
    batch = {"input_ids": pad(ids, processor.pad_token_id or 0), "attention_mask": attention_mask(ids)}
    if "token_type_ids" in features[0]:
        batch["token_type_ids"] = pad([f["token_type_ids"] for f in features], 0)
    return batch


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (examples, labels) logits in at least fp32."""
    output = model(**{key: value for key, value in batch.items() if key != "labels"})
    logits = output.logits if hasattr(output, "logits") else output
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
