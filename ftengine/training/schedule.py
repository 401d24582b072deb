"""How many steps there are, and learning rates as pure functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ftengine.run.recipe import TrainSection


@dataclass(frozen=True)
class Schedule:
    """How many optimiser steps a run has, and how many a whole epoch."""

    total: int
    per_epoch: int


def plan_steps(examples: int, section: TrainSection, processes: int = 1) -> Schedule:
    """Count the optimiser steps of a run over `examples` training examples."""
    per_epoch = math.ceil(examples / (section.batch_size * section.accumulate * processes))
    total = max(1, _up(per_epoch * section.epochs))
    return Schedule(min(total, section.max_steps or total), per_epoch)


def warmup_steps(warmup: float, total: int) -> int:
    """Return the number of warm-up steps: a share of `total` if below 1, else a number of steps."""
    return min(total, _up(warmup * total) if warmup < 1 else int(warmup))


def _up(steps: float) -> int:
    """Round up, but for what multiplying decimals adds: 1.1 · 10 is 11.000000000000002."""
    return math.ceil(round(steps, 9))


def factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """Return what the peak learning rate is multiplied with at a step, 0 for the first.

    Args:
        schedule: "constant", "linear" (to 0) or "cosine" (to 0, half a period).
        warmup: steps of linear growth before the schedule begins; the first step is not 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
