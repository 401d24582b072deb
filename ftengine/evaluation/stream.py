"""A model over examples as a stream: one batch at a time, and what it said of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ftengine.api import Example, Generates, Listener, LoadedModel, Prediction, Task
from ftengine.data.batching import ordered_batches
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import TrainingError
from ftengine.training.losses import to_device


@dataclass(frozen=True)
class ModelStream:
    """A model, and how it is run over examples.

    Args:
        accelerator: device, mixed precision and processes; each process takes a share of the examples.
        loaded: the model.
        task: what predicts and answers.
        batch_size: examples a batch.
        listener: told of every batch.
    """

    accelerator: Accelerator
    loaded: LoadedModel
    task: Task
    batch_size: int
    listener: Listener

    def predictions(
        self, split: EncodedSplit, phase: str, columns: Collection[str] = (), *, whole: bool = False
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield (member, prediction) for each example of this process's share, longest first.

        Args:
            split: the examples.
            phase: what the listener is told.
            columns: columns of the row that are put into the prediction.
            whole: take all examples in every process.
        """
        for members in self._batches(np.arange(len(split)), split, phase, whole):
            batch = to_device(split.batch(members), self.accelerator.device)
            with torch.no_grad(), self.accelerator.autocast():
                predictions = self.task.predict(self.loaded.module, batch)
            rows: list[Example] = [split.example(member) for member in members] if columns else [{}] * len(members)
            for member, prediction in self._with_columns(members, predictions, rows, columns):
                _require_finite(prediction, split, member, phase)
                yield member, prediction

    def answers(
        self, split: EncodedSplit, members: np.ndarray, options: Mapping[str, Any], phase: str, columns: Collection[str]
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield (member, answer) for each of the chosen examples in this process's share, longest first."""
        assert isinstance(self.task, Generates)  # only evaluators that read what it answers come here
        for chosen in self._batches(members, split, phase):
            rows = [split.example(member) for member in chosen]
            with torch.no_grad(), self.accelerator.autocast():
                answers = self.task.answer(self.loaded, rows, options)
            yield from self._with_columns(chosen, answers, rows, columns)

    def _batches(
        self, members: np.ndarray, split: EncodedSplit, phase: str, whole: bool = False
    ) -> Iterator[np.ndarray]:
        rank, ranks = (0, 1) if whole else (self.accelerator.process_index, self.accelerator.num_processes)
        self.loaded.module.eval()
        self.listener.phase(phase, len(members))
        for chosen in ordered_batches(split.lengths[members], self.batch_size, rank, ranks):
            yield members[chosen]
            self.listener.advance(len(chosen) * ranks)

    @staticmethod
    def _with_columns(
        members: np.ndarray, predictions: list[Prediction], rows: list[Example], columns: Collection[str]
    ) -> Iterator[tuple[int, Prediction]]:
        for member, prediction, row in zip(members, predictions, rows, strict=True):
            # What the task says wins: a column of the same name is no answer of the model.
            yield int(member), {**{column: row.get(column) for column in columns}, **prediction}


def _require_finite(prediction: Prediction, split: EncodedSplit, member: int, phase: str) -> None:
    """Refuse predictions that are no numbers, of which no figure can be made.

    Raises:
        TrainingError: names the example and what is not finite.
    """
    for key, value in prediction.items():
        numeric = isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float))
        if numeric and not np.isfinite(value).all():
            raise TrainingError(
                f"{phase}: the model's {key} is not finite ({split.rows.where(int(split.index[member]))}). "
                "Set train.precision=float32 if it is not; else lower train.learning_rate, or look at the base model."
            )
