"""comparison.json: results of several strategies on the same held-out examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ftengine.api import Difference, Estimate
from ftengine.run.evaluation_result import Estimates, UndefinedAsNan
from ftengine.run.record import Part, Record


class Contender(Part):
    """The result of one strategy.

    Args:
        rate_from: where its learning rate comes from.
        quality: its value of the compared metric; `figures` has all metrics.
        step_seconds: median time of a step.
        disk_bytes: size of its trained part.
        reused: whether its run existed already.
        alarm: its verdict's alarm about the answers, if there is one; it is then not ranked.
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
    """The first strategy minus the second; `p_adjusted` is for all pairs (Holm), `supported` if it is significant."""

    first: str = ""
    second: str = ""
    supported: bool = False

    def negated(self) -> PairDifference:
        """Return the second strategy minus the first."""
        return replace(super().negated(), first=self.second, second=self.first)


class Comparison(Record):
    """comparison.json: results of strategies on the same held-out examples.

    Args:
        metric: the compared metric; `higher_is_better` is None if the evaluator does not declare it.
        examples: number of distinct examples, or of groups. Groups have `rows` rows, and are `worth` this many groups
            of equal size.
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
