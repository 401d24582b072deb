"""crossvalidation.json: what the folds of a cross-validation came to, alone and together."""

from __future__ import annotations

from typing import ClassVar

from ftengine.api import Baseline, Finding
from ftengine.run.evaluation_result import Estimates, Figures
from ftengine.run.record import Part, RedactedRecord


class Spread(Part):
    """A metric of the tuned models, fold by fold; nothing but the values where a fold has none."""

    values: tuple[float | None, ...]
    mean: float | None = None
    std: float | None = None
    least: float | None = None
    greatest: float | None = None


class Fold(Part):
    """One fold: its folder, how many examples it held out, its figures, and whether it was there before.

    Examples are distinct ones; where rows come in groups, the groups, which have so many `rows`.
    """

    fold: int
    run: str
    examples: int
    rows: int | None = None
    base: Estimates
    tuned: Estimates
    reused: bool


class CrossValidation(RedactedRecord, Figures):
    """crossvalidation.json: what the folds came to.

    Args:
        examples: distinct ones, each held out once; where rows come in groups, the groups, which have so many `rows`
            and are `worth` so many groups of equal size.
        base, tuned, difference: over all examples; without metrics that hold for one model alone (`Metric.pooled`).
        baselines: by evaluator, what one reaches over all examples who does not look at the inputs, and what the tuned
            models answer most.
        verdict: what the rules say of the quality of all answers together, as the headline of a run does.
        spread: by metric the tuned model's value on each fold alone.
        statement: what the intervals cover and what not, in words.
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
