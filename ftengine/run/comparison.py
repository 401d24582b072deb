"""comparison.json: what several strategies came to on the same held-out examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ftengine.api import Difference, Estimate
from ftengine.run.evaluation_result import Estimates, UndefinedAsNan
from ftengine.run.record import Part, Record


class Contender(Part):
    """What one strategy came to.

    Args:
        rate_from: where its learning rate is from.
        quality: the figure of the metric that is compared; `figures` are all.
        step_seconds: median of its steps.
        disk_bytes: of its weights.
        reused: whether its run was there already.
        alarm: what its verdict says of its answers where that is an alarm; then it is not ranked.
    """

    label: str
    strategy: dict[str, Any]
    learning_rate: float
    rate_from: str
    quality: UndefinedAsNan[Estimate]
    figures: Estimates
    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int
    step_seconds: float | None
    steps: int
    seconds: float
    disk_bytes: int
    run: str
    reused: bool
    alarm: str | None = None


@dataclass(frozen=True)
class PairDifference(Difference):
    """The first strategy minus the second; `p_adjusted` is for all pairs (Holm), `supported` by the data or not."""

    first: str = ""
    second: str = ""
    supported: bool = False

    def negated(self) -> PairDifference:
        """Return the second strategy minus the first."""
        return replace(super().negated(), first=self.second, second=self.first)


class Comparison(Record):
    """comparison.json: what strategies came to on the same held-out examples.

    Args:
        metric: what quality means here; `higher_is_better` is None where the evaluator does not say.
        examples: distinct ones; where rows come in groups, the groups, which have so many `rows` and are
            `worth` so many groups of equal size.
        base: the untuned model's quality.
        against: "best": the best against each other strategy; "all": every pair.
        statement: which differences the data supports, in words.
    """

    file: ClassVar[str] = "comparison.json"
    metric: str
    higher_is_better: bool | None
    split: str
    examples: int
    rows: int | None = None
    worth: float | None = None
    base: UndefinedAsNan[Estimate]
    strategies: tuple[Contender, ...]
    against: Literal["best", "all"]
    differences: tuple[UndefinedAsNan[PairDifference], ...]
    statement: str
