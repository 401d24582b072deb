"""Evaluators."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import Component
from ftengine.api.types import Example, Labels, Prediction

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluator may know beside the predictions."""

    task: str
    labels: Labels | None = None


@dataclass(frozen=True)
class Judgement:
    """How well one example was answered.

    Args:
        score: higher is better; comparable between models on the same example.
        right: whether the answer is right, where it can be right or wrong.
    """

    score: float
    right: bool | None = None


class Evaluator(Component):
    """Measures predictions. Its figures are functions of sums over examples.

    One example gives a row of S numbers (`statistics`); a metric is a function of the rows' sum
    (`metrics`). The engine adds rows up as a stream, so memory does not grow with the data, resamples
    the sums for intervals (Poisson bootstrap, Chamandy et al. 2012), and compares tuned and base on the
    same resamples, which pairs them by example.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    """Keys of `Prediction` that `statistics` needs."""
    higher_is_better: ClassVar[Mapping[str, bool | None]] = {}
    """For each metric, whether more is better; None where neither more nor less is.

    Where the labels decide which are reported, `bind` sets it anew."""

    columns: ClassVar[frozenset[str]] = frozenset()
    """Columns of the user's row that `statistics` finds in the prediction too, None where the row has none."""
    generation: Mapping[str, Any] | None = None
    """Options of `Task.answer` that this evaluator asks for, e.g. {"max_new_tokens": 64}."""
    biased: ClassVar[frozenset[str]] = frozenset()
    """Metrics that noise makes larger, and resampling larger still: they get no interval rather than a wrong one."""
    per_model: ClassVar[frozenset[str]] = frozenset()
    """Metrics that rank, bin or correlate what one model says of many examples: they mean nothing over the answers of
    several models, so cross-validation gives them fold by fold only."""

    def check(self, example: Example) -> None:
        """Refuse a row whose `columns` hold what this evaluator cannot read; called before a model loads.

        Raises:
            DataError: says what is allowed.
        """

    def bind(self, context: EvaluationContext) -> None:
        """Learn the labels before the first prediction."""

    fits: ClassVar[bool] = False
    """Whether `fit` has to see the model's predictions on validation before anything is measured."""

    def fit(self, predictions: Iterable[Prediction] | None) -> None:
        """Learn from validation predictions, a stream; None where no validation split is left to learn from."""

    def lean(self) -> Evaluator:
        """Return an evaluator of those figures that need few statistics; each slice of the data has sums of its own.

        Called after `bind`; the first metric has to be among them.
        """
        return self

    def judge(self, prediction: Prediction) -> Judgement | None:
        """Say how well one example was answered; None where this evaluator does not judge single examples."""
        return None

    def statistics(self, prediction: Prediction) -> Sequence[float]:
        """Return this example's S numbers; S is the same for every example."""
        raise NotImplementedError

    def metrics(self, sums: np.ndarray) -> Mapping[str, np.ndarray]:
        """Turn sums of shape (..., S) into metrics of shape (...); nan where undefined."""
        raise NotImplementedError

    def counts(self, prediction: Prediction) -> Iterable[Hashable]:
        """Return what to count of this example, without resampling, e.g. its cell of a confusion matrix."""
        return ()

    def trials(self, sums: np.ndarray) -> Mapping[str, float]:
        """Return, for each metric that is a proportion, the most trials behind it, from the sums of shape (S,).

        Those metrics get score intervals, which keep a width at 0 and 1.
        """
        return {}

    def sizes(self, sums: np.ndarray) -> Mapping[str, float]:
        """Return, for metrics in which examples weigh unequally, how many of equal weight they are worth, from (S,).

        (Σw)² / Σw² for weights w (Kish 1965, Survey Sampling, §8.2). Intervals are as wide as for so many.
        """
        return {}

    def excess(self, sums: np.ndarray) -> Mapping[str, tuple[np.ndarray, float]]:
        """Return, for each metric that is a mean minus a proportion, that proportion and the most trials behind it.

        The proportion has the metric's shape (...), from sums of shape (..., S). The interval is made of the mean's
        and the proportion's, so that it keeps a width where resamples hardly ever hold a failure.
        """
        return {}

    def details(self, sums: np.ndarray, counts: Mapping[Hashable, int]) -> Mapping[str, Any]:
        """Return further JSON values from the sums of shape (S,) and the counts, e.g. a confusion matrix."""
        return {}

    parts: ClassVar[str] = ""
    """The list in `details` that has a row for each part (label, output, …) of which `by_part` gives figures."""

    def by_part(self, sums: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return figures of each part, shape (..., parts), from sums of shape (..., S).

        The rows of `parts` get them as NAME, and their intervals as NAME_interval, [low, high] or None.
        """
        return {}

    def part_trials(self, sums: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return, for figures of `by_part` that are proportions, the most trials behind each part, shape (parts,)."""
        return {}


@dataclass(frozen=True)
class Metric:
    """One figure with its interval.

    Args:
        value: the point estimate.
        low, high: ends of the 95 % interval; None where it cannot be computed.
        n: examples it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Tuned minus base on the same examples.

    Args:
        value: the difference of the two point estimates.
        low, high: ends of the paired 95 % interval.
        p: two-sided bootstrap p-value of no difference.
        better: True where tuned is better beyond chance, False where it is worse, None where neither.
        detectable: the smallest true difference that this many examples would show in four of five tests.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    better: bool | None
    detectable: float | None = None
