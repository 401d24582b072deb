"""Sorts of evaluators, each with what such evaluators alone write."""

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
    """An evaluator that learns something from validation, as a temperature; its `fit` may set `metrics` anew."""

    @abstractmethod
    def fit(self, rows: Rows | None) -> None:
        """Learn from the predictions on validation before anything is scored; None where there are none left."""


class ModelEvaluator(Evaluator):
    """An evaluator that asks the models questions beside the recipe's data, as a benchmark does.

    One that does no more than ask has no metrics, and its `score` returns none.
    """

    @abstractmethod
    def benchmarks(self, task: Task) -> Mapping[str, Evaluator]:
        """Return what it asks the models itself (`ask_models`), by name, and the evaluator of the answers to each.

        Called before a model loads. Those returned are called as it is itself. Their metrics are known by now; metrics
        of one name mean the same. Raise InputError where models of this task cannot be asked, or what is asked is not
        there.
        """

    @abstractmethod
    def ask_models(self, loaded: LoadedModel) -> Mapping[str, Sequence[Prediction]]:
        """Ask a model.

        Return a mapping an example with what the evaluators of `benchmarks` read, by the same names. Examples with an
        equal "group", a text or number, belong together, as questions about one text do. Base and tuned model are asked
        the same examples in the same order. The model is in evaluation mode, without gradients and under the run's
        autocast, as in `Task.predict`.
        """


class CodeEvaluator(Evaluator):
    """An evaluator that measures by code beside installed plugins: a program, a function that the recipe names."""

    @abstractmethod
    def runs_code(self) -> str | None:
        """Return what runs beside installed plugins, as in "the function score.py:right"; None: nothing.

        A run that was made elsewhere may do that only if the user agrees.
        """

    def code_files(self) -> Sequence[Path]:
        """Return the files of code beside its class's by which it measures; a run's record has a hash of each."""
        return ()

    def start(self) -> None:
        """Begin what is needed to measure, such as a process; raise RecipeError where it cannot be.

        Called before a model loads, where models are measured: never by what only looks, as `ftengine plan`.
        """


class IntervalEvaluator(Evaluator):
    """An evaluator of whose figures more is known than resamples of them show: what their intervals rest on."""

    def trials(self, rows: Rows) -> Mapping[str, float]:
        """Return how many independent trials are at most behind a metric that is a proportion, by metric.

        By default they are the examples; a metric that is not declared a proportion is taken for one where it is here.
        """
        return {}

    def example_weights(self, rows: Rows) -> Mapping[str, np.ndarray]:
        """Return (n,) weights by metric, where examples weigh unequally, as in a loss per token; 0: it is of others.

        Intervals are as wide as for (Σw)² / Σw² examples (Kish 1965, §8.2).
        """
        return {}

    def proportions(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the proportion that a metric subtracts from a mean, as confidence minus accuracy does.

        (B,) by metric, for weights of shape (B, n). Their intervals are made of the mean's and the proportion's (Zou
        and Donner 2008, doi:10.1002/sim.3095), so that they keep a width where resamples hardly ever hold a failure.
        """
        return {}

    def baseline_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return what always giving the answer of its `Baseline` comes to, (B,) by metric, for weights (B, n).

        So models are compared with it as with another model. A metric that is left out has a level that does not depend
        on which examples were drawn, as ROC AUC has 0.5.
        """
        raise NotImplementedError
