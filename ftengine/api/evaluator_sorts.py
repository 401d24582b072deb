"""Base classes of special kinds of evaluators, with the methods that only they have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftengine.api.evaluator import Evaluator
from ftengine.api.metric import Rows
from ftengine.api.types import LoadedModel, Prediction

if TYPE_CHECKING:
    import numpy as np

    from ftengine.api.task import Task


class FittedEvaluator(Evaluator):
    """An evaluator that learns something from validation, such as a temperature; its `fit` may set `metrics` anew."""

    @abstractmethod
    def fit(self, rows: Rows | None) -> None:
        """Learn from the predictions on validation, before anything is scored; None where there are none."""


class ModelEvaluator(Evaluator):
    """An evaluator that asks the models questions beside the recipe's data, as a benchmark does.

    One that only asks has no metrics, and its `score` returns none.
    """

    @abstractmethod
    def benchmarks(self, task: Task) -> Mapping[str, Evaluator]:
        """Return an evaluator for each benchmark, by its name; `ask_models` returns the answers that they score.

        Called before a model loads. The engine uses the returned evaluators like any other; their `metrics` must be
        set. Metrics with the same name must mean the same. Raise InputError where models of this task cannot be asked,
        or the questions are missing.
        """

    @abstractmethod
    def ask_models(self, loaded: LoadedModel) -> Mapping[str, Sequence[Prediction]]:
        """Ask a model.

        Return one mapping per example with the keys that the evaluators of `benchmarks` read, by the names of the
        benchmarks. Examples with an equal "group", a text or number, belong together, as questions about one text do.
        Base and tuned model are asked the same examples in the same order. The model is in evaluation mode, without
        gradients and under the run's autocast, as in `Task.predict`.
        """


class CodeEvaluator(Evaluator):
    """An evaluator that runs code beside installed plugins: a program, or a function that the recipe names."""

    @abstractmethod
    def runs_code(self) -> str | None:
        """Return what code it runs, such as "the function score.py:right"; None: nothing beside installed plugins.

        For a run made elsewhere the user has to allow it (--trust-code).
        """

    def code_files(self) -> Sequence[Path]:
        """Return the files of code, besides the class's own, that figures depend on; a run records their hashes."""
        return ()

    def start(self) -> None:
        """Start what is needed to measure, such as a process; raise RecipeError where that fails.

        Called before a model loads, and only where models are measured: not by `ftengine plan`.
        """


class IntervalEvaluator(Evaluator):
    """An evaluator that declares what the intervals of its figures depend on, beyond what resamples show."""

    def trials(self, rows: Rows) -> Mapping[str, float]:
        """Return, for metrics that are proportions, the largest possible number of independent trials behind each.

        By default the number of examples. A metric that is named here counts as a proportion.
        """
        return {}

    def example_weights(self, rows: Rows) -> Mapping[str, np.ndarray]:
        """Return (n,) weights by metric, where examples weigh unequally, as in a loss per token.

        A weight of 0: the example is not used. Intervals are as wide as for (Σw)² / Σw² examples (Kish 1965, §8.2).
        """
        return {}

    def proportions(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return, for metrics that are a mean minus a proportion (confidence minus accuracy), the proportion.

        (B,) by metric, for weights of shape (B, n). Their intervals combine those of the mean and of the proportion
        (Zou and Donner 2008, doi:10.1002/sim.3095), so that they keep a width where resamples hardly ever contain a
        failure.
        """
        return {}

    def baseline_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the metrics of always giving the `Baseline`'s answer, (B,) by metric, for weights (B, n).

        Models are then compared with the baseline in the same resamples. Leave out a metric whose level does not depend
        on the examples, such as 0.5 of ROC AUC.
        """
        raise NotImplementedError
