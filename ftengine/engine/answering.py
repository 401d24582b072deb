"""What answers rows: the tuned model of a run, or a base model before anything is trained."""

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
from ftengine.model.generation import sampling
from ftengine.parallel.device import Device
from ftengine.plugins.registry import AUTO, Registry
from ftengine.run.recipe import Recipe
from ftengine.run.record import flat
from ftengine.text import number


class Answering(ABC):
    """A recipe's task with a model that answers rows.

    Attributes:
        path: what it is called in messages, and in files of answers.
        day: that the model's chat template writes; None: today.
        base_now: fingerprint of the base as it was loaded last; {} before.
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
        """All components that are installed, or those that it was opened with."""
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
            examples: rows such as the task takes; labels are not needed. They are read as a stream.
            base: answer with the base model instead, for comparison.
            calibrated: answer by what the task fitted on the validation split, such as a temperature.
            batch_size: examples answered together; by default the recipe's `evaluation.batch_size`, else
                `ANSWERED_TOGETHER` where text is written and `TOGETHER` elsewhere, fewer where a GPU's memory ends.
            options: the task's own, e.g. {"max_new_tokens": 40}.
            samples: draw so many answers to each example, {"samples": [answer, …]}, by default at temperature 1 and
                with the recipe's seed: each depends on that, the prompt and its number alone.

        Raises:
            DataError: an example cannot be answered; the message has its number.
            InputError: an option is unknown to the task, there is nothing to calibrate by, or it writes no text that
                could be drawn.
            RunError: weights are not finite.
            SourceError: the tokenizer gives tokens that the model has no embeddings for.
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
        """Return how many examples are answered together, as in an evaluation."""
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
        """Return what answers depend on, the rows aside: the fields of `AnswerOrigin`."""

    @abstractmethod
    def without_model(self, *, check_source: bool = False) -> LabelledTask:
        """Return the task, with its labels; `check_source` says whether the model's source is looked at."""

    @abstractmethod
    def _calibration(self, base: bool) -> dict[str, Any]:
        """Return what the task fitted on validation (InputError: nothing, or not for the model that is asked)."""

    @abstractmethod
    def _model(self, base: bool) -> tuple[Device, LabelledTask, LoadedModel]: ...

    @property
    def task(self) -> Task:
        """The run's task, with the labels that it learnt."""
        return self.without_model().task

    def ready(self) -> ReadyTask:
        """Return the run's task, with its labels, and what rows are encoded for."""
        labelled = self.without_model(check_source=True)
        return ready_task(labelled.experiment, labelled.task)

    def require_trust(self, code: str | None, does: str) -> None:
        """Refuse to run code that the run's recipe names and the user has not agreed to (InputError)."""
        if code and not self.trust_code:
            raise InputError(
                f"run {str(self.path)!r} {does} {code}, which could do anything on this machine. If you "
                f"trust it ({self.path / 'recipe.yaml'} says what it is), add --trust-code."
            )

    def _check_source(self, experiment: Experiment) -> None:
        """Refuse a model source that cannot be loaded (SourceError), or only by code that is not trusted."""
        code = experiment.loader.runs_code(self.recipe.model.source)
        self.require_trust(code, "loads its model with")
        experiment.check_source()

    def _experiment(self, strategy: Mapping[str, Any]) -> Experiment:
        """Return the recipe's components; what acts in training is left out."""
        content = self.recipe.resolved()
        content["strategy"] = strategy
        content["callbacks"] = content["augment"] = content["regularize"] = []
        content["train"] |= {"optimizer": AUTO, "schedule": AUTO}
        return Experiment.open(Recipe.make(content), self._registry, self.listener, check_source=False, day=self.day)

    def _settings(self, options: Mapping[str, Any] | None, samples: int | None) -> dict[str, Any]:
        """Return how the model is loaded, what it computes in, and the task's options that were given."""
        model, options = self.recipe.model, self._drawn(options, samples)
        settings: dict[str, Any] = {"loader": model.loader, "dtype": model.dtype, "options": dict(options or {})}
        settings |= {} if samples is None else {SAMPLES: samples}
        return {**settings, "precision": Device.open(self.recipe).precision.name}

    def _drawn(self, options: Mapping[str, Any] | None, samples: int | None) -> Mapping[str, Any] | None:
        """Return the options of answers that are drawn (InputError: none can be, or all would be equal)."""
        if samples is None:
            return options
        if not writes_completions(task := self.task):
            raise InputError(
                f"task {task.name!r} writes no text, so all of {samples} answers would be equal. Leave --samples out."
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
    of = [task.infer(loaded, rows, {**(options or {}), "sample": k}) for k in range(samples)]
    return [{SAMPLES: list(answers)} for answers in zip(*of, strict=True)]
