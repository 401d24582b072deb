"""Evaluators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field

from ftengine.api.component import Component, Traits
from ftengine.api.display import Display, Shown
from ftengine.api.types import Example, Labels, LoadedModel, Prediction

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

    import numpy as np

    from ftengine.api.task import Task

    Rows = Mapping[str, np.ndarray]
else:

    class Rows(Mapping[str, Any]):  # numpy is not imported for a `--help`
        """Columns of a table of predictions, n rows each: the task's keys, (n,) or (n, k), and what `keep` returned.

        Texts and lists of different lengths are arrays of objects; a number that a row does not have is nan.
        """


@dataclass(frozen=True)
class Metric:
    """What an evaluator declares of one of its figures.

    Args:
        label: as people call it, e.g. "macro F1".
        higher_is_better: None where neither more nor less is better.
        proportion: it is a share of trials, between 0 and 1; it gets a score interval, which keeps a width at both.
        interval: False where noise makes it larger and resampling larger still, so that its interval would be wrong.
        fallback: the metric to decide by where this one has no interval.
        tested_as: the metric that this one rises and falls with, so that one test serves both: for a perplexity, the
            loss, whose differences are nearer to a normal distribution.
        shown_as: the metric by which a headline shows this one, in a unit that people read: R² of an error.
        pooled: False where it ranks, bins or correlates what one model says of many examples, so that it means
            nothing over the answers of several folds' models.
        relative: it depends on which examples are measured together, as a rank among them does, so that figures of two
            sets of examples cannot be compared.
        kind: "quality", or "calibration" for how well stated confidence holds.
        at_zero: what 0 means where it is not perfection.
        primary: the verdict goes by it rather than by the task's first metric, as by what a model writes.
        meaning: a sentence for whoever does not know it; it stands in the report's glossary.
    """

    label: str
    higher_is_better: bool | None = None
    proportion: bool = False
    interval: bool = True
    fallback: str = ""
    tested_as: str = ""
    shown_as: str = ""
    pooled: bool = True
    relative: bool = False
    kind: str = "quality"
    at_zero: str = ""
    primary: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class ExampleScores:
    """How well each of n examples was answered.

    Args:
        score: (n,) higher is better; nan where unknown.
        right: (n,) 1 where the answer is right, 0 where it is wrong, nan where it is neither.
        wrong_confidence: (n,) the probability that the model gave to what is wrong in its answer, so that confident
            errors can be shown; nan where it is right or unknown, None where all are.
    """

    score: np.ndarray
    right: np.ndarray
    wrong_confidence: np.ndarray | None = None


@dataclass(frozen=True)
class Estimate:
    """One figure with its interval.

    Args:
        value: the point estimate.
        low, high: ends of the 95 % interval; None where it cannot be computed.
        n: distinct examples it rests on; where rows come in groups, the groups, which are what was drawn.
        rows: of these groups; None where each distinct example stands for itself.
        worth: how many groups of equal size these are worth, which intervals and tests go by; None as `rows`.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    rows: int | None = None
    worth: float | None = None


Test = Literal["mcnemar", "newcombe", "sign", "t", "welch"]
"""Where a p-value is from: McNemar's exact test of right answers; Newcombe's interval of two proportions, at the level
at which it reaches zero; the sign test, where every example differs by the same; Student's t on the bootstrap's
standard error; Welch's t of two such errors."""


@dataclass(frozen=True)
class Difference:
    """One figure minus another: tuned minus base on the same examples, or of one model on different examples.

    Args:
        value: the difference of the two point estimates.
        low, high: ends of its 95 % interval, paired where the examples are the same.
        p: two-sided p-value of no difference.
        better: True where it is for the better beyond chance, False where it is for the worse, None where neither.
        detectable: the smallest true difference that this many examples would show in four of five tests.
        test: what made `p`; None without one.
        p_adjusted: `p` adjusted for all differences that are tested together (Holm); None where it stands alone.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    better: bool | None
    detectable: float | None = None
    test: Test | None = None
    p_adjusted: float | None = None

    def negated(self) -> Self:
        """Return the second figure minus the first."""
        low, high = (None if end is None else 0.0 - end for end in (self.high, self.low))
        better = None if self.better is None else not self.better
        return replace(self, value=0.0 - self.value, low=low, high=high, better=better)


class Baseline(Shown):
    """What one reaches who does not look at the inputs, and the answer that a model gives most.

    An evaluator yields it among its details (`yield Baseline(…).fact()`); rules measure the tuned model by it, and the
    headline of a classifier with a fresh head does, as beating that head's guesses says nothing.

    Args:
        answer: what is best answered always, as a reader knows it: the most frequent label, "the mean".
        share: how often that is the truth; 1 where all examples have the same.
        figures: by metric, the most that is reached so: for accuracy the most frequent label's share, for ROC AUC 0.5.
        given: the answer that the model gives most; "" where its answers are numbers that vary.
        count, total: to how many it gives this answer, of how many.
        unit: what is counted.
        gains: by metric, the model's figure minus that answer's; the engine fills it in.
        way: what is done in words, where that is no constant answer, as "preferring the longer answer".
        classes: (name, how often it is the truth, how often the model's answer) where each has one of a few; else ().
    """

    FACT: ClassVar[str] = "baseline"
    answer: str
    share: float
    figures: dict[str, float]
    given: str = ""
    count: int = 0
    total: int
    unit: str = "example"
    gains: dict[str, Difference] = Field(default_factory=dict)
    way: str = ""
    classes: tuple[tuple[str, int, int], ...] = ()

    def fact(self) -> tuple[str, Any]:
        """Return it as a detail of an evaluator."""
        return self.FACT, self.model_dump(mode="json")

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Baseline | None:
        """Return the one that is among an evaluator's details; None where there is none."""
        return cls.model_validate(details[cls.FACT]) if cls.FACT in details else None


class Estimator(Protocol):
    """Gives figures the engine's intervals."""

    def __call__(
        self, values: Callable[[np.ndarray], np.ndarray], trials: Sequence[float] | None = None
    ) -> list[Estimate]:
        """Return k estimates.

        Args:
            values: takes weights (B, n), returns (B, k), nan where undefined.
            trials: k; for proportions the most independent trials behind each, else None.
        """


@dataclass(frozen=True)
class EvaluatorTraits(Traits):
    """Facts about an evaluator.

    Args:
        probe: which probe of the engine it measures, "memorisation" or "refusal": recipe key `evaluation.PROBE` takes
            the one evaluator that serves it.
    """

    probe: str = ""


class Evaluator(Component):
    """Measures predictions; every figure is a function of the table of predictions and of weights."""

    traits: EvaluatorTraits = EvaluatorTraits()
    reads: frozenset[str] = frozenset()
    """Keys of the task's predictions without which nothing can be measured."""
    metrics: Mapping[str, Metric] = {}
    """What `score` returns, by name; where labels or validation decide, `set_labels` or `fit` sets it anew."""
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

    def start(self) -> None:
        """Begin what is needed to measure, such as a process; raise RecipeError where it cannot be.

        Called before a model loads, where models are measured: never by what only looks, as `ftengine plan`.
        """

    def runs_code(self) -> str | None:
        """Return what runs beside installed plugins, as in "the function score.py:right"; None: nothing.

        A run that was made elsewhere may do that only if the user agrees.
        """
        return None

    def code_files(self) -> Sequence[Path]:
        """Return the files of code beside its class's by which it measures; a run's record has a hash of each."""
        return ()

    def benchmarks(self, task: Task) -> Mapping[str, Evaluator]:
        """Return what it asks the models itself (`ask_models`), by name, and the evaluator of the answers to each.

        Called before a model loads. An evaluator that does no more than ask has no metrics, and its `score` returns
        none. Those returned are called as it is itself. Their metrics are known by now; metrics of one name mean the
        same. Raise InputError where models of this task cannot be asked, or what is asked is not there.
        """
        return {}

    def ask_models(self, loaded: LoadedModel) -> Mapping[str, Sequence[Prediction]]:
        """Ask a model questions beside the recipe's data, as benchmarks do.

        Return a mapping an example with what the evaluators of `benchmarks` read, by the same names. Examples with an
        equal "group", a text or number, belong together, as questions about one text do. Base and tuned model are asked
        the same examples in the same order. The model is in evaluation mode, without gradients and under the run's
        autocast, as in `Task.predict`.
        """
        raise NotImplementedError

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

    def fit(self, rows: Rows | None) -> None:
        """Learn from the predictions on validation before anything is scored; None where there are none left."""

    def score_resamples(self, rows: Rows, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Score many resamples at once, faster than one `score` after another.

        Return (B,) of each metric for weights of shape (B, n), of any type of number; equal to B calls of `score`.
        Metrics declared without an interval may be left out: nothing reads their resamples.
        """
        raise NotImplementedError

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
