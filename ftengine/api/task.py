"""Tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import Component, Traits
from ftengine.api.files import beside
from ftengine.api.types import Batch, Example, Features, Labels, LoadedModel, Prediction, View

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftengine.api.metric import Rows
    from ftengine.api.strategy import Strategy
    from ftengine.model import Criterion


@dataclass(frozen=True)
class TaskTraits(Traits):
    """Facts about a task.

    Args:
        example_model: the default `model.source` of `ftengine init`; "": its own example.
        example_data: the default `data.train` of `ftengine init`.
        reads_following: whether `encode` gets the argument `following`: the next row of the split with other inputs
            (for the last row, the first such one). Losses that use answers to another prompt need it.
        answers_vectors: `infer` returns a mapping with one vector per row, a list of floats of one length, so that
            `ftengine predict` can also write a matrix.
        batch_size: recommended examples per step, for losses that compare examples; if there are enough rows, `ftengine
            init` sets `train.accumulate` to reach it. None: the recipe's default.
        most_epochs: maximal number of epochs that `ftengine init` proposes for few rows; None: as many as give enough
            steps.
        learning_rate_share: factor of the strategy's usual learning rate with which `ftengine init` proposes a rate.
        strategy_defaults: (option, value) pairs: other defaults for the strategy's options, if it has options of these
            names.
        unit: what an example's length counts, such as "images".
        pipeline_tag: the hub's tag of such a model for model cards, such as "text-generation"; "": none.
    """

    example_model: str = ""
    example_data: str = ""
    reads_following: bool = False
    answers_vectors: bool = False
    batch_size: int | None = None
    most_epochs: float | None = None
    learning_rate_share: float = 1.0
    strategy_defaults: tuple[tuple[str, Any], ...] = ()
    unit: str = "tokens"
    pipeline_tag: str = ""


@dataclass(frozen=True)
class Recognised:
    """How a task reads some data; returned by `Task.recognise`.

    Args:
        certainty: `ftengine init` proposes the task with the highest: 3 if the data is made for this task, 2 if it
            suits it well, 1 if it can be used, 0 if the task must be named with `--task`.
        columns: renaming of columns, for the recipe's `data.columns`.
        options: the task's options.
        note: sentences for the recipe's author about columns that seem to matter but are not read, or that are
            ambiguous; "" if there are none.
        layout: name of the rows' layout, e.g. "sharegpt"; "" if it has none.
        split: division of the rows, for the recipe's `data.split`; empty for a random one.
    """

    certainty: int
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    layout: str = ""
    split: Mapping[str, Any] = field(default_factory=dict)


class Task(Component):
    """Defines what an example is, how it is encoded, and the loss."""

    traits: TaskTraits = TaskTraits()
    head: ClassVar[str]
    """What the loader puts on top of the model."""
    modality: ClassVar[str]
    """What the inputs in a `View` are: "text", "image" or "audio"."""
    evaluators: tuple[str, ...] = ()
    """Evaluators that every run of this task uses; may depend on `labels`."""
    predicts: frozenset[str] = frozenset()
    """Keys that every `Prediction` of this task has, which evaluators read; may depend on `labels`."""
    labels: Labels | None = None
    """What `learn_labels` returned, in this run or in the one that is reopened; set by the engine, read by the task."""
    calibration: Mapping[str, Any] | None = None
    """What `calibrate` returned in the run that is reopened, where `infer` is to answer by it; set by the engine."""
    predicts_probabilities: bool = False
    """Whether what the model says are probabilities, so that labels can be smoothed and two passes compared; may depend
    on `labels`."""
    file_columns: tuple[str, ...] = ()
    """Columns whose values name files; in a data file they are relative to that file (`in_folder`)."""

    @abstractmethod
    def view(self, row: Example) -> View:
        """Return what the engine needs to know of a row, before and after the task has its labels.

        Never raises: for a malformed row, return what can be read. Only access to an input (decoding an image) may
        raise DataError.
        """

    def in_folder(self, row: Example, folder: str) -> Example:
        """Return a row of a data file in `folder`, its paths relative to the working directory (`ftengine.api.beside`).

        A task whose rows name files deeper than in `file_columns` extends it. Never raises.
        """
        return {**row, **{name: beside(row[name], folder) for name in self.file_columns if name in row}}

    @abstractmethod
    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        """Return a row with other inputs, as many as `view` gives; the rest of it is kept, and `row` is unchanged.

        Raise DataError where the row cannot be read.
        """

    @abstractmethod
    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Encode one example; `max_length` is the model's limit in tokens.

        For a task that writes `parts`, `part` is the number of the example within the row (None: the last). For a task
        with the trait `reads_following`, `following` is the next row (None: there is none). Raise DataError where the
        row lacks a field or holds a value of the wrong kind.
        """

    @abstractmethod
    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad and stack features into tensors."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight); the engine divides once, by the whole effective batch's weight.

        Call the criterion with logits and targets of `criterion.passes` forward passes, in the order of the batch's
        examples: the engine computes losses by source from this order.
        """

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return one prediction per example, in the batch's order; called without gradients."""

    # What some write.

    def write_config(self, loaded: LoadedModel, directory: Path) -> None:
        """Add files to the folder of a saved model that tell its users how to interpret the outputs."""

    def learn_labels(self, splits: Mapping[str, Iterable[Example]]) -> Labels | None:
        """Return the classification targets, learnt from the training split; None where the task has none.

        `splits` holds "train" and, where present, "validation" and "test". Raise DataError where there are too few
        labels, or one occurs only outside of training.
        """
        return None

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Return how to read data with these columns, for `ftengine init`; None where the data is of another kind.

        `rows` are the first few.
        """
        return None

    def parts(self, row: Example, processor: Any) -> int:
        """Return how many examples a row makes, where that may be more than one.

        `encode` is then called once for each, with its number from 0 as `part`. `view` and `with_inputs` treat the row
        as a whole. Raise DataError where the row cannot be read.
        """
        return 1

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise DataError, before any row is read, where the task cannot use these columns.

        The message names the columns found and the shapes of row that are allowed.
        """

    def set_model(self, loaded: LoadedModel, strategy: Strategy | None) -> None:
        """Receive a model before the task works on it; raise RecipeError where the two do not fit.

        For a task that depends on the model or the strategy, such as one that needs the base's answers. Called with the
        base (`strategy` is None), and with each model that a strategy has prepared; before that, where the loader
        builds skeletons, with one on the meta device. `loss`, `predict` and `generate` are then called with the last
        one.
        """

    def notes(self, loaded: LoadedModel, strategy: Strategy) -> tuple[list[str], list[str]]:
        """Return sentences for `ftengine plan` on a model that a strategy has prepared: facts about it, and warnings.

        The model may be on the meta device.
        """
        return [], []

    def calibrate(self, rows: Rows) -> Mapping[str, Any]:
        """Fit parameters of `infer`, such as a temperature, to the tuned model's predictions on validation.

        `rows` are columns by key of `predicts`, as evaluators get them; called where the trait `predicts_probabilities`
        is set. The returned JSON values are kept in the run and in the config.json of saved classifiers, and become
        `calibration` for `ftengine predict --calibrated`. Raise DataError, which says how many rows are needed, where
        there are too few.
        """
        raise NotImplementedError

    def check_input(self, row: Example) -> None:
        """Raise DataError where `infer` cannot answer a row."""

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer raw rows without labels, one mapping per row, as `ftengine predict` writes them.

        `options` are the task's own (`max_new_tokens`, …); unknown ones are an InputError.
        """
        raise NotImplementedError

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode an encoded example into (text, is trained on) pieces, for `ftengine plan`."""
        return []

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        """Return a prediction for people (JSON values): names instead of ids, without long values."""
        raise NotImplementedError

    def probe_batch(self, loaded: LoadedModel) -> Batch:
        """Return a small batch, made without data, that exercises the model's layers, for `merge` to compare outputs.

        By default random tokens: `ftengine.model.probe_tokens`.
        """
        raise NotImplementedError

    def raw_outputs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's raw outputs (logits) for a batch.

        By default `ftengine.model.raw_outputs`.
        """
        raise NotImplementedError
