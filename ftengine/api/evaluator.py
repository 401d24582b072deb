"""Evaluators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component, Traits
from ftengine.api.display import Display
from ftengine.api.metric import Estimator, ExampleScores, Metric, Rows
from ftengine.api.types import Example, Labels, Prediction

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class EvaluatorTraits(Traits):
    """Facts about an evaluator.

    Args:
        probe: which probe of the engine it measures, "memorisation" or "refusal": recipe key `evaluation.PROBE` takes
            the one evaluator that serves it.
    """

    probe: str = ""


class Evaluator(Component):
    """Measures predictions; every figure is a function of the table of predictions and of weights.

    Some sorts write more: `FittedEvaluator` learns from validation, `ModelEvaluator` asks the models itself,
    `CodeEvaluator` runs code of the user's, `IntervalEvaluator` says what the intervals of its figures rest on.
    """

    traits: EvaluatorTraits = EvaluatorTraits()
    reads: frozenset[str] = frozenset()
    """Keys of the task's predictions without which nothing can be measured."""
    metrics: Mapping[str, Metric] = {}
    """What `score` returns, by name; where labels decide, `set_labels` sets it anew."""
    columns: frozenset[str] = frozenset()
    """Columns of the user's row that it reads too; they are put into the prediction, None where the row has none."""
    generation: Mapping[str, Any] = {}
    """Options of `Task.generate` that it wants its texts made with, e.g. {"max_new_tokens": 64}."""
    sampling: Mapping[str, Any] = {}
    """The same of several answers to a row, where it reads those as "samples", and "samples", how many."""

    @abstractmethod
    def score(self, rows: Rows, weights: np.ndarray) -> Mapping[str, float]:
        """Return every metric of n rows, nan where undefined.

        `weights` are (n,): how often each row counts; 0 is as if it were not there.
        """

    # What some write, in the order in which it is called.

    def set_labels(self, task: str, labels: Labels | None) -> None:
        """See the task's name and labels, before the first prediction; raise RecipeError where they do not suit it."""

    def check_row(self, row: Example) -> None:
        """Raise DataError where a row's `columns` hold what cannot be read; called before a model loads."""

    def keep(self, prediction: Prediction) -> Mapping[str, Any]:
        """Return columns of its own of one example: numbers, or lists equally long for every example.

        For what costs much to compute, such as n-gram counts: it is done once a run, and not for each resample. Values
        are plain: texts, numbers, truth values, lists and mappings of them, None where an example has no such key.
        """
        return {}

    def keep_together(
        self, rows: Rows, answer: Callable[[Sequence[Example]], Sequence[Mapping[str, Any]]] | None
    ) -> Mapping[str, np.ndarray]:
        """Return columns of its own that take all examples of a set at once, such as ranks among them: numbers, (n, …).

        `rows` are those that `score` gets, but for these columns. `answer` is `Task.infer` of the model, for what else
        has to be asked of it; None where a finished run's predictions are measured again, without the model: raise
        InputError where it takes that.
        """
        return {}

    def score_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Score many resamples at once, faster than one `score` after another.

        Return (B,) of each metric for weights of shape (B, n), of any type of number; equal to B calls of `score`.
        Metrics declared without an interval may be left out: nothing reads their resamples.
        """
        raise NotImplementedError

    def score_examples(self, rows: Rows) -> ExampleScores:
        """Say how well each example was answered: scores comparable between models on it, and what is right."""
        raise NotImplementedError

    def for_slices(self) -> Evaluator:
        """Return an evaluator without the figures that take too long to be resampled for every slice of the data.

        It reads the same rows, and its first metric is this one's.
        """
        return self

    def details(self, rows: Rows, estimate: Estimator) -> Iterable[Display | tuple[str, Any]]:
        """Yield more than the metrics: tables with intervals, a confusion matrix, a reliability diagram.

        That is displays, and (name, JSON value) facts that rules and readers look up, `Baseline.fact` among them. Rows
        are those of one model; `estimate` gives figures intervals.
        """
        return ()
