"""crossvalidation.json: results of the folds of a cross-validation, by fold and pooled."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ftengine.api import Baseline, Finding
from ftengine.run.evaluation_result import Estimates, Figures
from ftengine.run.record import Part, RedactedRecord


class Spread(Part):
    """A metric of the tuned models by fold, as the mean over seeds, or by seed; only the values if one is undefined."""

    values: tuple[float | None, ...]
    mean: float | None = None
    std: float | None = None
    least: float | None = None
    greatest: float | None = None


class Fold(Part):
    """A fold's run, one of each seed: its folder, the examples held out, figures, and whether it existed already.

    `examples` is the number of distinct examples, or of groups, which have so many `rows`.
    """

    fold: int
    run: str
    examples: int
    rows: int | None = None
    base: Estimates
    tuned: Estimates
    reused: bool


class CrossValidation(RedactedRecord, Figures):
    """crossvalidation.json: results of the folds.

    Args:
        examples: number of distinct examples, or of groups, each held out once. Groups have `rows` rows, and are
            `worth` this many groups of equal size.
        base, tuned, difference: over all examples; without metrics that cannot be pooled (`Metric.pooled`). Of several
            seeds, means, whose intervals cover seeds and examples.
        baselines: by evaluator, the figures of a baseline that ignores the inputs, over all examples, and the tuned
            models' most frequent answer (of the median seed).
        verdict: the finding of the rules on the quality of all answers, as in a run's headline.
        spread: the tuned model's value on each fold, by metric.
        statement: what the intervals cover, in words.
        seeds: of several seeds, the tuned models' values over all examples, by metric; {} of a single one.
    """

    file: ClassVar[str] = "crossvalidation.json"
    folds: int
    examples: int
    rows: int | None = None
    worth: float | None = None
    higher_is_better: dict[str, bool | None]
    baselines: dict[str, Baseline]
    verdict: Finding
    spread: dict[str, Spread]
    runs: tuple[Fold, ...]
    statement: str
    seeds: dict[str, Spread] = Field(default_factory=dict)
