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
        probe: the engine's probe that it serves, "memorisation" or "refusal"; recipe key `evaluation.PROBE` uses the
            one evaluator with it.
    """

    probe: str = ""


class Evaluator(Component):
    """Measures predictions; every figure is a function of the table of predictions and of the rows' weights.

    Subclasses can do more: `FittedEvaluator` learns from validation, `ModelEvaluator` asks the models questions of its
    own, `CodeEvaluator` runs the user's code, and `IntervalEvaluator` describes what the intervals of its figures
    depend on.
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

        `weights` are (n,): how often each row counts; a row of weight 0 is ignored.
        """

    # What some write, in the order in which it is called.

    def set_labels(self, task: str, labels: Labels | None) -> None:
        """Receive the task's name and labels before the first prediction (RecipeError: they do not suit it)."""

    def check_row(self, row: Example) -> None:
        """Raise DataError where values in a row's `columns` cannot be read; called before a model loads."""

    def keep(self, prediction: Prediction) -> Mapping[str, Any]:
        """Return columns of the evaluator's own for one example: numbers, or lists of one length for all examples.

        Use it for what is slow to compute, such as n-gram counts: it is called once a run, not once a resample. Values
        are plain: texts, numbers, booleans, lists and mappings of them, None where an example has no such key.
        """
        return {}

    def keep_together(
        self, rows: Rows, answer: Callable[[Sequence[Example]], Sequence[Mapping[str, Any]]] | None
    ) -> Mapping[str, np.ndarray]:
        """Return columns of the evaluator's own that need all examples of a set, such as ranks: numbers, (n, …).

        `rows` are those that `score` gets, without these columns. `answer` is the model's `Task.infer`, for further
        questions; it is None where a finished run's predictions are measured without the model: raise InputError there
        if it is needed.
        """
        return {}

    def score_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Score many resamples at once, faster than repeated calls of `score`.

        Return (B,) of each metric for weights of shape (B, n), of any numeric type; equal to B calls of `score`.
        Metrics declared without an interval may be left out.
        """
        raise NotImplementedError

    def score_examples(self, rows: Rows) -> ExampleScores:
        """Return a score of each example, comparable between models, and whether its answer is right."""
        raise NotImplementedError

    def for_slices(self) -> Evaluator:
        """Return an evaluator without the figures that are too slow to resample for every slice of the data.

        It must read the same keys and have the same first metric.
        """
        return self

    def details(self, rows: Rows, estimate: Estimator) -> Iterable[Display | tuple[str, Any]]:
        """Yield more than the metrics: tables with intervals, a confusion matrix, a reliability diagram.

        Yield displays, and facts as (name, JSON value), such as `Baseline.fact`, which rules read. `rows` are those of
        one model; `estimate` computes intervals.
        """
        return ()
