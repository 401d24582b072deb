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
        quality: its value of the compared metric; `figures` has all metrics. Of several seeds, the mean, whose interval
            covers seeds and examples.
        by_seed: the compared metric by seed; () of a single one.
        between: standard deviation of it between seeds, without that due to examples.
        step_seconds: median time of a step.
        peak_memory_bytes, seconds: of several seeds, the largest and the sum.
        disk_bytes: size of its trained part, or of one seed's.
        run: its folder, or that of its seeds' folders.
        reused: whether its run existed already.
        alarm: its verdict's alarm about the answers, if there is one; it is then not ranked.
    """

    label: str
    strategy: dict[str, Any]
    learning_rate: float
    rate_from: str
    quality: UndefinedAsNan[Estimate]
    figures: Estimates
    by_seed: tuple[float | None, ...] = ()
    between: float | None = None
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
    """The first strategy minus the second; `p_adjusted` is for all pairs (Holm), `supported` if it is significant.

    Args:
        by_seed: the difference of each seed of both; () of a single one.
        settled_by: number of seeds of each at which it would be supported (by Bonferroni, of several pairs), given the
            same mean and spread; None if more than 100, or where it is supported.
    """

    first: str = ""
    second: str = ""
    supported: bool = False
    by_seed: tuple[float, ...] = ()
    settled_by: int | None = None

    def negated(self) -> PairDifference:
        """Return the second strategy minus the first."""
        by_seed = tuple(0.0 - value for value in self.by_seed)
        return replace(super().negated(), first=self.second, second=self.first, by_seed=by_seed)


class Comparison(Record):
    """comparison.json: results of strategies on the same held-out examples.

    Args:
        metric: the compared metric; `higher_is_better` is None if the evaluator does not declare it.
        examples: number of distinct examples, or of groups. Groups have `rows` rows, and are `worth` this many groups
            of equal size.
        base: the untuned model's quality.
        against: "best": the best against each other strategy; "all": every pair.
        statement: which differences the data supports, in words.
        seeds: number of seeds that each strategy was trained with.
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
    seeds: int = 1
