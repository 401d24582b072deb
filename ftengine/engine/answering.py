"""Answering rows, by the tuned model of a run or by an untrained base model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ftengine.api import SAMPLES, Example, Listener, LoadedModel, Task
from ftengine.api.task_sorts import writes_completions
from ftengine.engine.base_predictions import ANSWERED_TOGETHER, TOGETHER
from ftengine.engine.experiment import Experiment
from ftengine.engine.model_fit import tokens_checked
from ftengine.engine.prepared_data import LabelledTask, ReadyTask, check_inputs, inferring, ready_task
from ftengine.errors import InputError
from ftengine.evaluation.finite import require_finite_answers
from ftengine.generation import sampling
from ftengine.parallel.device import Device
from ftengine.plugins.registry import AUTO, Registry
from ftengine.run.recipe import Recipe
from ftengine.run.record import flat
from ftengine.text import number


class Answering(ABC):
    """A recipe's task with a model that answers rows.

    Attributes:
        path: names the model in messages and in files of answers.
        day: the date that the model's chat template writes; None: today.
        base_now: fingerprint of the base when it was last loaded; {} before it is loaded.
    """

    path: Path
    recipe: Recipe
    listener: Listener
    trust_code: bool
    day: date | None
    base_now: Mapping[str, Any]
    _registry: Registry

    @property
    def registry(self) -> Registry:
        """The registry that was given, or the one of all installed components."""
        return self._registry

    def predict(
        self,
        examples: Iterable[Example],
        *,
        base: bool = False,
        calibrated: bool = False,
        batch_size: int | None = None,
        options: Mapping[str, Any] | None = None,
        samples: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Answer examples one after the other, in their order.

        Args:
            examples: rows of the task, read as a stream; labels are not needed.
            base: answer with the base model instead, for comparison.
            calibrated: apply what the task fitted on the validation split, such as a temperature.
            batch_size: examples answered together; by default the recipe's `evaluation.batch_size`, else
                `ANSWERED_TOGETHER` where text is written and `TOGETHER` elsewhere, fewer where a GPU's memory ends.
            options: the task's own, e.g. {"max_new_tokens": 40}.
            samples: number of answers to draw for each example, returned as {"samples": [answer, …]}; by default at
                temperature 1. Each answer depends only on the recipe's seed, the prompt and the answer's number.

        Raises:
            DataError: an example cannot be answered; the message gives its number.
            InputError: the task does not have an option, the run has no calibration, or `samples` is set and the
                task writes no text.
            RunError: the model has weights that are not finite.
            SourceError: the tokenizer has tokens for which the model has no embeddings.
            TrainingError: an answer is not finite.
        """
        calibration = self._calibration(base) if calibrated else None
        options = self._drawn(options, samples)
        device, labelled, loaded = self._model(base)
        task, size = inferring(labelled.task), batch_size or self._together(labelled.task)
        stream, done = iter(examples), 0
        if calibration is not None:
            fitted = ", ".join(f"{key} {number(value)}" for key, value in flat(calibration).items())
            self.listener.message(f"answers are calibrated on the run's validation split: {fitted}")
        chunk: list[Example] = []
        while chunk := [*chunk, *islice(stream, max(0, size - len(chunk)))]:
            now = chunk[:size]
            check_inputs(labelled.task, now, lambda i, first=done + 1: f"example {first + i}")  # type: ignore[misc]
            task.calibration = calibration
            rows_read = f"examples {done + 1:,} to {done + len(now):,}"
            try:
                with device.inference(loaded), tokens_checked(loaded, rows_read):
                    answers = _answers(task, loaded, now, options, samples)
            except torch.OutOfMemoryError:
                if batch_size or size == 1:
                    raise
                size = (len(now) + 1) // 2
                self.listener.message(
                    f"{len(now)} examples together do not fit into memory: {size} at a time from here on"
                )
                continue
            require_finite_answers(answers, done + 1)
            yield from answers
            chunk, done = chunk[len(now) :], done + len(now)

    def _together(self, task: Task) -> int:
        """Return the batch size, the same as in an evaluation."""
        usual = ANSWERED_TOGETHER if writes_completions(task) else TOGETHER
        return self.recipe.evaluation.batch_size or usual

    @abstractmethod
    def answering(
        self,
        *,
        base: bool = False,
        calibrated: bool = False,
        options: Mapping[str, Any] | None = None,
        samples: int | None = None,
    ) -> dict[str, Any]:
        """Return what answers depend on besides the rows: the fields of `AnswerOrigin`."""

    @abstractmethod
    def without_model(self, *, check_source: bool = False) -> LabelledTask:
        """Return the task with its labels; `check_source` also checks the model's source."""

    @abstractmethod
    def _calibration(self, base: bool) -> dict[str, Any]:
        """Return what the task fitted on validation (InputError: nothing, or for another model)."""

    @abstractmethod
    def _model(self, base: bool) -> tuple[Device, LabelledTask, LoadedModel]: ...

    @abstractmethod
    def open_model(self) -> LoadedModel:
        """Load the model that answers, on the CPU and in the dtypes of its files, for code that computes with it.

        Unlike `predict`, this leaves the device and the precision that are open in this process as they are.
        """

    @property
    def task(self) -> Task:
        """The run's task with the labels that it learnt."""
        return self.without_model().task

    def ready(self) -> ReadyTask:
        """Return the run's task with its labels, the processor and the model that rows are encoded for."""
        labelled = self.without_model(check_source=True)
        return ready_task(labelled.experiment, labelled.task)

    def require_trust(self, code: str | None, does: str) -> None:
        """Raise InputError if the recipe names code to run and the user did not pass `trust_code`."""
        if code and not self.trust_code:
            raise InputError(
                f"run {str(self.path)!r} {does} {code}, which could do anything on this machine. If you "
                f"trust it ({self.path / 'recipe.yaml'} names it), add --trust-code."
            )

    def _check_source(self, experiment: Experiment) -> None:
        """Check that the model source can be loaded (SourceError) and that the user trusts its code (InputError)."""
        code = experiment.loader.runs_code(self.recipe.model.source)
        self.require_trust(code, "loads its model with")
        experiment.check_source()

    def _experiment(self, strategy: Mapping[str, Any]) -> Experiment:
        """Return the recipe's components, without those that only act in training."""
        content = self.recipe.resolved()
        content["strategy"] = strategy
        content["callbacks"] = content["augment"] = content["regularize"] = []
        content["train"] |= {"optimizer": AUTO, "schedule": AUTO}
        return Experiment.open(Recipe.make(content), self._registry, self.listener, check_source=False, day=self.day)

    def _settings(self, options: Mapping[str, Any] | None, samples: int | None) -> dict[str, Any]:
        """Return the loader, dtype and precision, and the options of the task that were given."""
        model, options = self.recipe.model, self._drawn(options, samples)
        settings: dict[str, Any] = {"loader": model.loader, "dtype": model.dtype, "options": dict(options or {})}
        settings |= {} if samples is None else {SAMPLES: samples}
        return {**settings, "precision": Device.open(self.recipe).precision.name}

    def _drawn(self, options: Mapping[str, Any] | None, samples: int | None) -> Mapping[str, Any] | None:
        """Return the options for drawing answers (InputError: the task draws none, or all would be equal)."""
        if samples is None:
            return options
        if not writes_completions(task := self.task):
            raise InputError(
                f"task {task.name!r} writes no text, so all {samples} answers would be equal. Leave --samples out."
            )
        return sampling(options or {}, samples, self.recipe.seed)


def _answers(
    task: Task,
    loaded: LoadedModel,
    rows: Sequence[Example],
    options: Mapping[str, Any] | None,
    samples: int | None,
) -> list[dict[str, Any]]:
    if samples is None:
        return list(task.infer(loaded, rows, options))
    repeated = [row for row in rows for _ in range(samples)]
    answers = task.infer(loaded, repeated, {**(options or {}), "sample": [*range(samples)] * len(rows)})
    return [{SAMPLES: list(answers[start : start + samples])} for start in range(0, len(repeated), samples)]
