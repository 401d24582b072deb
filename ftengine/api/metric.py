"""Metrics, figures with intervals, differences, the baseline, and columns of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field

from ftengine.api.display import Shown

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

    import numpy as np

    Rows = Mapping[str, np.ndarray]
else:

    class Rows(Mapping[str, Any]):  # numpy is not imported for a `--help`
        """Columns of a table of predictions, n rows each: the task's keys, (n,) or (n, k), and what `keep` returned.

        Texts and lists of different lengths are arrays of objects; a missing number is nan.
        """


@dataclass(frozen=True)
class Metric:
    """An evaluator's declaration of one of its figures.

    Args:
        label: as people call it, e.g. "macro F1".
        higher_is_better: None where neither more nor less is better.
        proportion: it is a share of trials, between 0 and 1; it gets a score interval, which keeps a width at both.
        interval: False for a metric that noise biases upwards, such as a calibration error, as a bootstrap interval
            would be wrong.
        fallback: the metric to decide by where this one has no interval.
        tested_as: a metric that is a monotonic function of this one and is tested in its place: for perplexity the
            loss, whose differences are nearer to a normal distribution.
        shown_as: the metric that a headline shows instead, in a unit that people read: R² for an error.
        pooled: False if it ranks, bins or correlates one model's outputs for many examples, so that outputs of several
            folds' models cannot be pooled.
        relative: it depends on which examples are measured together, as a rank does, so figures of two different sets
            of examples are not compared.
        kind: "quality", or "calibration" for how well stated confidence holds.
        at_zero: meaning of the value 0, if 0 is not a perfect score.
        primary: the verdict uses it rather than the task's first metric, e.g. a metric of generated text.
        meaning: a sentence for the report's glossary.
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
        right: (n,) 1 for a right answer, 0 for a wrong one, nan if answers are neither.
        wrong_confidence: (n,) the probability given to a wrong answer, to show confident errors; nan for right answers
            and if unknown, None if there is none.
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
        n: number of distinct examples; for grouped rows, of groups, as these are sampled.
        rows: number of rows in these groups; None if the data has no groups.
        worth: effective number of groups (Kish), given their sizes; used by intervals and tests. None if the data has
            no groups.
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
        better: True for a significant improvement, False for a significant decline, None if not significant.
        detectable: the smallest true difference that a test on this many examples detects with a power of 80 %.
        test: the test that gives `p`; None without one.
        p_adjusted: `p` adjusted for all differences that are tested together (Holm); None if it is tested alone.
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
    """The best constant answer with its figures, and the model's most frequent answer.

    An evaluator yields it among its details (`yield Baseline(…).fact()`). Rules compare the tuned model with it. The
    headline does so too if the base has an untrained head.

    Args:
        answer: the best constant answer in words: the most frequent label, "the mean".
        share: the share of examples for which it is right; 1 if all have the same label.
        figures: its figures by metric: for accuracy the most frequent label's share, for ROC AUC 0.5.
        given: the model's most frequent answer; "" if its answers are varying numbers.
        count, total: how often the model gives `given`, and the number of all answers.
        unit: the counted thing, such as "example".
        gains: by metric, the model's figure minus the baseline's; filled in by the engine.
        way: the baseline in words, if it is another one than a constant answer: "preferring the longer answer".
        classes: for classifiers (name, number of examples, number of the model's answers) of each class; else ().
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
        """Return the baseline among an evaluator's details; None where there is none."""
        return cls.model_validate(details[cls.FACT]) if cls.FACT in details else None


class Estimator(Protocol):
    """Computes an evaluator's figures with the engine's intervals; an argument of `Evaluator.details`."""

    def __call__(
        self, values: Callable[[np.ndarray], np.ndarray], trials: Sequence[float] | None = None
    ) -> list[Estimate]:
        """Return k estimates.

        Args:
            values: takes weights (B, n), returns (B, k), nan where undefined.
            trials: k; for proportions the largest possible number of independent trials, else None.
        """
