"""evaluation.json and examples.json: results of base and tuned model on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from ftengine.api import Difference, Display, Estimate, Metric
from ftengine.run.record import Part, Record, RedactedRecord


def _undefined(value: Any) -> Any:
    """Return a figure from JSON with nan for a value of null."""
    return value | {"value": float("nan")} if isinstance(value, dict) and value.get("value", 0) is None else value


@dataclass(frozen=True)
class MeasuredMetric(Metric):
    """A metric as its evaluator declares it, and that evaluator's name."""

    evaluator: str = ""


AnyFigure = TypeVar("AnyFigure")
UndefinedAsNan = Annotated[AnyFigure, BeforeValidator(_undefined)]
Estimates = dict[str, UndefinedAsNan[Estimate]]
Differences = dict[str, UndefinedAsNan[Difference]]


def quality_first(figures: Estimates, metrics: Mapping[str, Metric]) -> Estimates:
    """Return figures in the order of tables: those of quality first, then other kinds such as calibration."""
    return dict(sorted(figures.items(), key=lambda pair: pair[0] in metrics and metrics[pair[0]].kind != "quality"))


class Figures(Part):
    """Figures of two models on the same examples, and their differences, by metric."""

    base: Estimates
    tuned: Estimates
    difference: Differences


class Details(Part):
    """Facts that evaluators report beside their metrics: for each model, JSON values by evaluator and name."""

    base: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Displays(Part):
    """Tables and charts of evaluators, for each model."""

    base: tuple[Display, ...] = ()
    tuned: tuple[Display, ...] = ()


class Paired(Part):
    """How many distinct examples both models, one or neither got right, and McNemar's p."""

    evaluator: str
    both: int
    only_base: int
    only_tuned: int
    neither: int
    p: float | None


class Judged(Part):
    """Training examples judged one by one, as (score, right, place); None if unknown."""

    evaluator: str
    rows: tuple[tuple[float | None, bool | None, str], ...]


class OnTraining(Part):
    """Figures on a sample of n training rows.

    Args:
        gap, base_gap: a figure on training rows minus that on held-out ones, of the tuned model and of its base.
        grown: how much more tuning changed a figure on training rows than on held-out ones.
    """

    n: int
    base: Estimates
    tuned: Estimates
    difference: Differences = Field(default_factory=dict)
    gap: Differences = Field(default_factory=dict)
    base_gap: Differences = Field(default_factory=dict)
    grown: Differences = Field(default_factory=dict)
    judged: Judged | None = None


class Slice(Part):
    """The examples of one value of a column; `small` ones are not compared with the others.

    `difference` is tuned minus base within the slice, `gap` the tuned model's figure minus that of all other examples.
    Their `p_adjusted` is for all slices of all columns, None if they are not tested.
    """

    value: str
    examples: int
    small: bool
    base: Estimates
    tuned: Estimates
    difference: Differences
    gap: Difference | None = None


USUAL = 0.9
"""A slice with at least this share of the examples is the usual case; the other slices are exceptions to it."""


class SlicedColumn(Part):
    """The held-out examples divided by a column.

    Args:
        metric: the metric of the gaps; None if no metric declares which direction is worse.
        slices: strongest evidence of being worse first; slices that are not compared last.
        worst: the first slice that is not the usual one; `base_gap` is the base's gap there.
        left_out: number of examples with other values.
    """

    metric: str | None
    slices: tuple[Slice, ...]
    worst: str | None = None
    base_gap: Difference | None = None
    left_out: int = 0

    @property
    def examples(self) -> int:
        """Number of all examples, whatever their slice."""
        return sum(part.examples for part in self.slices) + self.left_out

    def is_usual(self, part: Slice) -> bool:
        """Return whether a slice holds nearly all examples."""
        return part.examples >= USUAL * self.examples


class Probe(Figures):
    """A measurement on other examples than the plain held-out ones.

    Args:
        kind: "leaks", "robustness", "ablation", "forgetting", "memorisation", "refusal" or "benchmark".
        name, data: the augmenter or evaluator that made the examples, and where they come from.
        examples: number of examples.
        against: the tuned model's difference from the reference: undisturbed examples, or held-out ones.
        held_out: figures of the reference by model, if there are any.
    """

    kind: str
    name: str
    data: str
    examples: int
    details: Details = Details()
    displays: Displays = Displays()
    against: Differences = Field(default_factory=dict)
    held_out: dict[str, Estimates] = Field(default_factory=dict)


class EvaluationResult(RedactedRecord):
    """evaluation.json.

    Args:
        split: the held-out split; None if there is none, and so no figures.
        metrics: declarations by name.
        base, tuned, difference: figures by metric, the task's first metric first.
        details, displays: facts, tables and charts of evaluators.
        paired: right and wrong answers of both models; None if answers are not right or wrong.
        training: the same figures on training rows; None if they were not measured.
        slices: held-out figures by slice, for each column.
        probes: further measurements.
    """

    file: ClassVar[str] = "evaluation.json"
    split: str | None
    metrics: dict[str, MeasuredMetric]
    base: Estimates
    tuned: Estimates
    difference: Differences
    details: Details
    displays: Displays
    paired: Paired | None = None
    training: OnTraining | None = None
    slices: dict[str, SlicedColumn] = Field(default_factory=dict)
    probes: tuple[Probe, ...] = ()

    @model_validator(mode="after")
    def _declared(self) -> EvaluationResult:
        if not (self.base.keys() <= self.tuned.keys() and self.base.keys() <= self.metrics.keys()):
            raise ValueError("the base has metrics that are not declared, or that the tuned model lacks")
        return self

    @property
    def headline_metric(self) -> str | None:
        """The first metric declared `primary`, else the task's first; None without held-out figures."""
        deciding = (name for name in self.tuned if name in self.metrics and self.metrics[name].primary)
        return next(deciding, next(iter(self.tuned), None))

    @property
    def leaked(self) -> Probe | None:
        """The held-out examples that training also has, which all other figures leave out; None if there are none."""
        return next((probe for probe in self.probes if probe.kind == "leaks"), None)

    @property
    def leaks(self) -> int:
        """Number of held-out examples that training also has."""
        return self.leaked.examples if self.leaked is not None else 0


class ChangedExample(Part):
    """An example that tuning changed.

    Args:
        place: e.g. "train.jsonl:17".
        shown: (text, is target) pieces.
        base, tuned: the answers, ready to be shown.
        base_score, tuned_score, base_right, tuned_right: how an evaluator judged them; None if unknown.
        confidence: probability that the tuned model gave to the wrong part of its answer; None if not computed.
    """

    place: str
    shown: tuple[tuple[str, bool], ...]
    base: dict[str, Any]
    tuned: dict[str, Any]
    base_score: float | None
    tuned_score: float | None
    base_right: bool | None
    tuned_right: bool | None
    confidence: float | None = None


class Answered(Part):
    """A held-out prompt, the reference answer (`wanted`; None if there is none), and the answers of both models."""

    place: str
    prompt: str
    wanted: str | None
    base: str
    tuned: str


class Examples(Record):
    """examples.json: single held-out examples, for people to look at.

    Args:
        evaluator: the evaluator whose scores are compared; None if no evaluator judges single examples.
        improved, worse: the examples that tuning changed most.
        mistakes: wrong answers of the tuned model, highest probability first.
        writes: whether models of the task write text.
        answers: texts of both models.
        answered_with: options of generation, such as max_new_tokens.
    """

    file: ClassVar[str] = "examples.json"
    evaluator: str | None
    improved: tuple[ChangedExample, ...]
    worse: tuple[ChangedExample, ...]
    mistakes: tuple[ChangedExample, ...] = ()
    writes: bool = False
    answers: tuple[Answered, ...] = ()
    answered_with: dict[str, Any] = Field(default_factory=dict)
