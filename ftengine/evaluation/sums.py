"""What one model came to on one set of examples: an accumulator a pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ftengine.api import Metric
from ftengine.evaluation.bootstrap import Accumulator, Figure

PREDICTIONS = "predictions"
"""The pass over what a task predicts of every example."""
ANSWERS = "answers"
"""The pass over what a task answers freely; it may be over some of the examples only."""


@dataclass
class Sums:
    """The sums of a model on a set of examples.

    Args:
        parts: accumulators by pass, `PREDICTIONS` and `ANSWERS`; their metrics have different names.
    """

    parts: dict[str, Accumulator] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        """Return every metric with its resamples."""
        return {name: figure for part in self.parts.values() for name, figure in part.figures().items()}

    def results(self) -> dict[str, Metric]:
        """Return every metric with its 95 % interval."""
        return {name: metric for part in self.parts.values() for name, metric in part.results().items()}

    def details(self) -> dict[str, Any]:
        """Return what evaluators tell beside their metrics (JSON values), by evaluator name."""
        return {name: content for part in self.parts.values() for name, content in part.details().items()}

    def merge(self, other: Sums, *, apart: bool = False) -> None:
        """Add what was measured on other examples.

        Args:
            other: by another process on the same split, or on another split (a fold).
            apart: whether it is another split, whose distinct examples count beside those here.

        Raises:
            ValueError: the other one resamples differently or runs other evaluators.
        """
        for name, part in other.parts.items():
            if name in self.parts:
                self.parts[name].merge(part, apart=apart)
            else:
                self.parts[name] = part
