"""Examples with a label, several labels or a number: learning targets, for any input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, Labels, LoadedModel, Prediction, Rows, Task
from ftengine.errors import DataError, column_names, did_you_mean, shown
from ftengine.model import Criterion
from ftengine_builtins.tasks.class_labels import (
    SHOWN_NAMES,
    as_number,
    in_order,
    kind_of,
    one_spelling,
    read_name,
    read_names,
    read_number,
    refuse_decimal_commas,
    refuse_joined,
    refuse_new_labels,
    refuse_numbers,
    unknown_label,
)
from ftengine_builtins.tasks.modes import evaluated, refuse_options

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLASSES = ("label", "predicted", "scores", "logits", "loss")
PREDICTS = {"single": _CLASSES, "multi": _CLASSES, "regression": ("target", "value", "loss")}
EVALUATORS = {"single": ("classification", "calibration"), "multi": ("classification",), "regression": ("regression",)}
RELEVANCE, RELEVANT = "relevance", "relevant"
"""The kind of label of a reranker, and the one name that a row has or has not."""
LIKELIEST = 5
"""Scores that a reader is shown."""


class LabelledConfig(Config):
    """Options about labels."""

    label: str = Field("label", min_length=1, description="column of the label")
    kind: Literal["auto", "single", "multi", "regression"] = Field(
        "auto", description="one label a row, several, or a number; auto decides from the training data"
    )
    separator: str = Field(";", min_length=1, description="between the names where several labels are one text")
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = Field(
        None,
        description="how much labels count in the training loss, for rare ones: {label: weight}, 1 where none is "
        "named; balanced: one over the rows of that label; the mean over training rows is made 1; null: all alike",
    )


class LabelledTask(Task):
    """One label an example, several, or a number; a subclass reads the input."""

    Config = LabelledConfig

    @property
    def kind(self) -> str:
        """Return the kind of label: the data's, once it is read, else the option's."""
        if self.labels is not None:
            return self.labels.kind
        kind = _kind(self.config.kind)
        return kind if kind in PREDICTS else "single"

    @property
    def predicts(self) -> frozenset[str]:
        return frozenset(PREDICTS[self.kind])

    @property
    def evaluators(self) -> tuple[str, ...]:
        return EVALUATORS[self.kind]

    @property
    def predicts_probabilities(self) -> bool:
        return self.kind != "regression"

    def read(self, example: Example, processor: Any, max_length: int | None) -> Features:
        """Return the model's input for an example, with weight 1 (DataError: the row lacks it)."""
        raise NotImplementedError

    def stack(self, features: Sequence[Features], processor: Any) -> Batch:
        """Return the model's inputs for some features, without `label`."""
        raise NotImplementedError

    def columns(self) -> dict[str, str | None]:
        """Return the column that each option names; None for an unused one."""
        raise NotImplementedError

    def check_columns(self, columns: Sequence[str]) -> None:
        for option, column in self.columns().items():
            if column is not None and column not in columns:
                raise DataError(
                    f"the data has no column {column!r} (columns: {column_names(columns) or 'none'}). Name it with "
                    f"task.{option}, or rename one with data.columns." + did_you_mean(column, columns)
                )

    def kind_of(self, examples: Iterable[Example]) -> str:
        """Decide the kind of label of training data: "single", "multi" or "regression"."""
        return kind_of(value for example in examples if (value := example.get(self.config.label)) is not None)

    def learn_labels(self, splits: Mapping[str, Iterable[Example]]) -> Labels:
        """Return kind and names of training's labels; `encode` refuses rows without a usable label.

        Fewer than two labels, and one that training lacks, are refused (DataError).
        """
        kind = self.kind_of(splits["train"]) if self.config.kind == "auto" else _kind(self.config.kind)
        if kind != "single" and self.config.class_weights is not None:
            raise DataError(
                f"task.class_weights needs one label a row, but this data is of kind {kind}. Set it to null."
            )
        if kind == "regression":
            return Labels(
                kind, (self.config.label,), **_scale_of(row.get(self.config.label) for row in splits["train"])
            )
        counts = Counter(name for row in splits["train"] for name in self._names(row, kind))
        names = in_order(one_spelling(counts))
        if not names or (kind == "single" and len(names) == 1):
            for row in splits["train"] if not names else ():
                if (value := row.get(self.config.label)) is not None:
                    self._read_names(value, kind)  # says what is wrong with the first one, and where that is
            if self.config.kind == RELEVANCE:
                raise DataError(f"no training row is relevant: column {self.config.label!r} is 1 nowhere.")
            labels = f"only the label {names[0]!r}" if names else "no label"
            raise DataError(f"the training data has {labels} in column {self.config.label!r}; at least two are needed.")
        if self.config.kind == RELEVANCE and counts[RELEVANT] == sum(
            row.get(self.config.label) is not None for row in splits["train"]
        ):
            raise DataError(
                f"every training row is relevant (column {self.config.label!r} is 1); rows that are not (0) are needed."
            )
        if self.config.kind == "auto" and kind == "single":
            refuse_joined(names, self.config.separator, self.config.label)
            refuse_decimal_commas(names)
            refuse_numbers(counts, self.config.label)
        refuse_new_labels(splits, lambda row: self._names(row, kind), names)
        if isinstance(weights := self.config.class_weights, dict) and (other := sorted(weights.keys() - set(names))):
            raise DataError(
                f"task.class_weights names label {other[0]!r}, which training lacks. Labels: "
                f"{', '.join(map(repr, names[:SHOWN_NAMES]))}.{did_you_mean(other[0], names)}"
            )
        return Labels(kind, names, tuple(counts[name] for name in names))

    def named(self, example: Example) -> str | float | list[str] | None:
        """Return the label's name, the sorted names of several, or a number; None if it cannot be read.

        With kind: auto, each row is judged by itself, as this is called before the data is bound.
        """
        value, kind = example.get(self.config.label), _kind(self.config.kind)
        try:
            if kind == "multi" or (kind == "auto" and isinstance(value, (list, tuple))):
                return sorted(self._read_names(value, "multi"))
            number = as_number(value)
            if kind == "regression" or (kind == "auto" and number is not None and not number.is_integer()):
                return read_number(value)
            return read_name(value)
        except DataError:
            return None

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the model's input, and `label`: an id, a list of 0 and 1, or a number."""
        features = self.read(example, processor, max_length)
        features.inputs["label"] = self._target(example)
        return features

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Stack inputs; labels are int64 (examples,), or fp32 (examples, labels) for several or a number."""
        import torch

        labels = torch.tensor([example.inputs["label"] for example in features])
        if self.kind != "single":
            labels = labels.float().reshape(len(features), -1)
        return {**self.stack(features, processor), "labels": labels}

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return (examples, labels) logits in at least fp32."""
        from ftengine.model import raw_outputs, widen

        return widen(raw_outputs(model, batch))

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (sum over examples, their number) of the criterion's losses; in training times their class's weight.

        With kind single, labels may be the (examples, labels) probabilities of mixed examples.
        """
        logits = [self.raw_outputs(model, batch) for _ in range(criterion.passes)]
        labels = batch["labels"]
        weights = None
        if self.config.class_weights is not None and model.training:
            weights = logits[0].new_tensor(self._class_weights())
        if weights is not None and labels.dim() == 2:  # of mixed examples: each share by the weight of its own label
            labels, weights = labels.to(weights.dtype) * weights, None
        losses = self._losses(criterion, labels, *logits)
        return (losses if weights is None else losses * weights[labels]).sum(), len(losses)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return each example's truth, answer and loss; {label, predicted, scores, logits} or {target, value}.

        With several labels, label and predicted are lists of 0 and 1, one number a name; so are scores
        (probabilities) and logits with any kind.
        """
        import torch

        with torch.no_grad():
            logits, labels = self.raw_outputs(model, batch), batch["labels"]
        losses = self._losses(Criterion(), labels, logits).tolist()
        if self.kind == "regression":
            columns = (labels[:, 0].tolist(), logits[:, 0].tolist(), losses)
        else:
            columns = (labels.long().tolist(), self._decide(logits), self._scores(logits), logits.tolist(), losses)
        return [dict(zip(PREDICTS[self.kind], values, strict=True)) for values in zip(*columns, strict=True)]

    def calibrate(self, rows: Rows) -> dict[str, Any]:
        """Fit a temperature for one label an example, or a threshold for each of several labels."""
        from ftengine_builtins.evaluators.calibration import LEAST_FITTED, best_temperature
        from ftengine_builtins.evaluators.weighted import numbers
        from ftengine_builtins.tasks.thresholds import LEAST_OF_EACH, USUAL, best_thresholds

        count = len(rows["label"])
        if self.kind == "regression":
            raise DataError("regression has no probabilities to calibrate.")
        if self.kind == "multi":
            thresholds = best_thresholds(numbers(rows["scores"]), numbers(rows["label"]), self.labels.names)
            if set(thresholds.values()) == {USUAL}:
                raise DataError(
                    f"no label is predicted better with another threshold than {USUAL} on the validation split. Only "
                    f"labels that at least {LEAST_OF_EACH} of its {count} rows have, and as many lack, are considered."
                )
            return {"thresholds": thresholds, "rows": count}
        if count < LEAST_FITTED:
            raise DataError(
                f"a temperature is fitted on {LEAST_FITTED} validation rows or more, and there were {count}. Hold "
                "out more of them (recipe key data.validation) and train again."
            )
        temperature = best_temperature(numbers(rows["logits"]), rows["label"])
        if temperature is None:
            right = (numbers(rows["logits"]).argmax(axis=1) == rows["label"]).all()
            why = "all of it is answered rightly" if right else "its answers say too little about the labels"
            raise DataError(
                f"no temperature fits the validation split, as {why}. Train with more validation rows (recipe key "
                f"data.validation){'' if right else ', or longer'}."
            )
        return {"temperature": temperature, "rows": count}

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"label": name, "scores": {name: p}}, {"labels": [names], "scores"}, or {"value": number}.

        There are no options. With a `calibration`, logits are divided by its temperature, or each label is given if its
        score reaches its threshold.
        """
        refuse_options(self, options)
        if not rows:
            return []
        features = [self.read(row, loaded.processor, loaded.max_length) for row in rows]
        logits = evaluated(self, loaded, self.stack(features, loaded.processor))
        fitted = self.calibration or {}
        logits = logits / fitted.get("temperature", 1.0)
        if self.kind == "regression":
            return [{"value": value} for value in logits[:, 0].tolist()]
        scores = [dict(zip(self.labels.names, row, strict=True)) for row in self._scores(logits)]
        if self.kind == "single":
            decided = zip(self._decide(logits), scores, strict=True)
            return [{"label": self.labels.names[i], "scores": row} for i, row in decided]
        least = dict.fromkeys(self.labels.names, 0.5) | fitted.get("thresholds", {})
        return [{"labels": [name for name, p in row.items() if p > least[name]], "scores": row} for row in scores]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        """Return names instead of ids, and the five highest scores."""
        if self.kind == "regression":
            return dict(prediction)
        answers = {key: self.label_text(prediction[key]) for key in ("label", "predicted")}
        scores = sorted(zip(self.labels.names, prediction["scores"], strict=True), key=lambda x: -x[1])
        return {**answers, "scores": dict(scores[:LIKELIEST])}

    def label_text(self, label: Any) -> str:
        """Return an encoded label as a reader sees it."""
        if self.kind == "single":
            return self.labels.names[label]
        return (", ".join(self._switched_on(label)) or "(none)") if self.kind == "multi" else str(label)

    def _class_weights(self) -> list[float]:
        """Return the factor of each label, with a mean of 1 over the training rows, so that steps are no larger."""
        class_weights, names, counts = self.config.class_weights, self.labels.names, self.labels.counts
        if counts is None:
            raise DataError("task.class_weights: the label counts of training are not known. Set it to null.")
        factors = [
            class_weights.get(name, 1.0) if isinstance(class_weights, dict) else 1 / n
            for name, n in zip(names, counts, strict=True)
        ]
        mean = sum(factor * count for factor, count in zip(factors, counts, strict=True)) / sum(counts)
        return [factor / mean for factor in factors]

    def _names(self, example: Example, kind: str) -> Iterator[str]:
        """Yield a row's label names; none where the label cannot be read."""
        value = example.get(self.config.label)
        try:
            yield from self._read_names(value, kind)
        except DataError:
            return

    def _read_names(self, value: Any, kind: str) -> list[str]:
        if self.config.kind == RELEVANCE:
            if as_number(int(value) if isinstance(value, bool) else value) not in (0, 1):
                raise DataError(f"the label is {shown(value)}; with task.kind=relevance it is 1 or 0.")
            return [RELEVANT] if float(value) else []
        return read_names(value, self.config.separator) if kind == "multi" else [read_name(value)]

    def _target(self, example: Example) -> int | float | list[int]:
        value = example.get(self.config.label)
        if self.kind == "regression":
            return read_number(value)
        names = self._read_names(value, self.kind)
        for name in names:
            if name not in self.labels.ids:
                raise unknown_label(name, self.labels.names)
        if self.kind == "single":
            return self.labels.ids[names[0]]
        return [int(name in names) for name in self.labels.names]

    def _losses(self, criterion: Criterion, labels: Tensor, *logits: Tensor) -> Tensor:
        """Return (examples,) losses, of numbers in standard deviations of the training targets."""
        targets = labels.to(logits[0].dtype) if labels.is_floating_point() else labels
        if self.kind == "regression" and (std := self.labels.std) is not None:
            targets, *logits = ((x - self.labels.mean) / std for x in (targets, *logits))
        return getattr(criterion, self.kind)(targets, *logits)

    def _decide(self, logits: Tensor) -> list[Any]:
        """Return the likeliest id, or for several labels 1 for a probability above one half."""
        return (logits.argmax(dim=1) if self.kind == "single" else (logits > 0).long()).tolist()

    def _scores(self, logits: Tensor) -> list[list[float]]:
        return (logits.softmax(dim=1) if self.kind == "single" else logits.sigmoid()).tolist()

    def _switched_on(self, indicators: list[int]) -> list[str]:
        return [name for name, on in zip(self.labels.names, indicators, strict=True) if on]


def _kind(kind: str) -> str:
    """Return an option's kind of label as `Labels` has it."""
    return "multi" if kind == RELEVANCE else kind


def _scale_of(targets: Iterable[Any]) -> dict[str, float]:
    """Return mean and standard deviation of targets; 1 where they do not vary, {} where none is a number."""
    import numpy as np

    values = np.array([value for target in targets if (value := as_number(target)) is not None])
    if not len(values):
        return {}
    varies = values.std() > 1e-12 * np.abs(values).max()  # below is the rounding of the mean alone
    return {"mean": float(values.mean()), "std": float(values.std()) if varies else 1.0}
