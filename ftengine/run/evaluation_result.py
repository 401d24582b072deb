"""evaluation.json and examples.json: what base and tuned model came to on the same examples."""

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
    """Return figures as tables have them: those of other kinds, such as calibration, stand behind those of quality."""
    return dict(sorted(figures.items(), key=lambda pair: pair[0] in metrics and metrics[pair[0]].kind != "quality"))


class Figures(Part):
    """Figures of two models on the same examples, and what lies between them, by metric."""

    base: Estimates
    tuned: Estimates
    difference: Differences


class Details(Part):
    """Facts that evaluators tell beside their metrics: of each model, by evaluator and name, JSON values."""

    base: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Displays(Part):
    """Tables and charts of evaluators, of each model."""

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
    """Training examples judged one by one: (score, right, place) each; None where unknown."""

    evaluator: str
    rows: tuple[tuple[float | None, bool | None, str], ...]


class OnTraining(Part):
    """Figures on a sample of n training rows.

    Args:
        gap, base_gap: of the tuned model and its base, the figure on training rows minus that on held-out ones.
        grown: by how much more tuning changed a figure on training rows than on held-out ones.
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

    `difference` is tuned minus base within it, `gap` the tuned model's figure minus that of all other examples; their
    `p_adjusted` is for all slices of all columns, None where they are not tested.
    """

    value: str
    examples: int
    small: bool
    base: Estimates
    tuned: Estimates
    difference: Differences
    gap: Difference | None = None


USUAL = 0.9
"""Share of the examples from which a slice is what is usual: where it is behind, the others are the exception."""


class SlicedColumn(Part):
    """The held-out examples divided by a column.

    Args:
        metric: what gaps are of; None where nothing says what is worse.
        slices: the one most surely behind first, those not compared last.
        worst: the first that does not hold nearly all examples; `base_gap` is the gap of the base there.
        left_out: examples with other values.
    """

    metric: str | None
    slices: tuple[Slice, ...]
    worst: str | None = None
    base_gap: Difference | None = None
    left_out: int = 0

    @property
    def examples(self) -> int:
        """All examples, whatever slice they are in."""
        return sum(one.examples for one in self.slices) + self.left_out

    def is_usual(self, one: Slice) -> bool:
        """Say whether a slice holds nearly all examples."""
        return one.examples >= USUAL * self.examples


class Probe(Figures):
    """What was measured beside the held-out examples.

    Args:
        kind: "leaks", "robustness", "forgetting", "memorisation", "refusal" or "benchmark".
        name, data: what was done to the examples, or who asked them, and where they are from.
        examples: how many.
        against: tuned against the reference: undisturbed examples, or held-out ones.
        held_out: figures of the reference, where there are such; by model.
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
        split: the held-out split; None without one, and then there are no figures.
        metrics: declarations, by name.
        base, tuned, difference: figures by metric, the task's first metric first.
        details, displays: what evaluators tell beside them.
        paired: example by example; None where nothing is right or wrong.
        training: the same figures on training rows; None where none were measured.
        slices: by column.
        probes: whatever else was measured.
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
        """The first metric that is declared to decide, else the task's first; None without held-out figures."""
        deciding = (name for name in self.tuned if name in self.metrics and self.metrics[name].primary)
        return next(deciding, next(iter(self.tuned), None))

    @property
    def leaked(self) -> Probe | None:
        """Held-out examples that are in training too, which no other figure is made on; None where none are known."""
        return next((probe for probe in self.probes if probe.kind == "leaks"), None)

    @property
    def leaks(self) -> int:
        """How many these are."""
        return self.leaked.examples if self.leaked is not None else 0


class ChangedExample(Part):
    """An example that tuning changed.

    Args:
        place: e.g. "train.jsonl:17".
        shown: (text, is wanted) pieces.
        base, tuned: the answers, as a reader should see them.
        base_score, tuned_score, base_right, tuned_right: how they were judged; None where unknown.
        confidence: the probability that the tuned model gave to what is wrong in its answer; None where not asked for.
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
    """A held-out prompt, what was to be answered (None where nothing says), and what both models answered."""

    place: str
    prompt: str
    wanted: str | None
    base: str
    tuned: str


class Examples(Record):
    """examples.json: single held-out examples, for people to look at.

    Args:
        evaluator: by whose scores examples changed; None where none judges single ones.
        improved, worse: those that tuning changed most.
        mistakes: wrong answers of the tuned model, those with the highest probability first.
        writes: whether models of the task write text.
        answers: what both models write, where it is to be read.
        answered_with: options by which they were asked, such as the most tokens.
    """

    file: ClassVar[str] = "examples.json"
    evaluator: str | None
    improved: tuple[ChangedExample, ...]
    worse: tuple[ChangedExample, ...]
    mistakes: tuple[ChangedExample, ...] = ()
    writes: bool = False
    answers: tuple[Answered, ...] = ()
    answered_with: dict[str, Any] = Field(default_factory=dict)
