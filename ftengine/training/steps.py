"""Number of steps, and learning rates as pure functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from ftengine.api import Schedule
from ftengine.plugins.attribution import contract_error
from ftengine.run.recipe import TrainSection

CPU_TOKENS = 512
"""Tokens of a micro-batch for two CPU threads; more are not computed faster, but need more memory."""

MOST_TIMES = 20
"""Most validations, and most checkpoints, of a run by default: with few rows an epoch has only a step or two."""


def batch_tokens(section: TrainSection, device: torch.device) -> int:
    """Return the most tokens of a micro-batch, 0 for no limit."""
    if section.batch_tokens == "auto":
        return CPU_TOKENS * max(1, torch.get_num_threads() // 2) if device.type == "cpu" else 0
    return section.batch_tokens or 0


@dataclass(frozen=True)
class Steps:
    """Numbers of optimiser steps: of a run, of a whole epoch, and of the learning rate's warm-up.

    `batch` is the number of examples of a step over all micro-batches and processes: the effective batch.
    """

    total: int
    per_epoch: int
    warmup: int
    batch: int

    @property
    def epochs_between(self) -> int:
        """Epochs between validations or checkpoints, if the recipe sets no number of steps."""
        return max(1, math.ceil(self.total / self.per_epoch / MOST_TIMES))

    def factor(self, schedule: Schedule, step: int) -> float:
        """Return the factor of the peak learning rate at a step, counted from 0.

        It grows linearly in the warm-up and is above 0 at the first step; then it comes from the schedule.

        Raises:
            PluginError: the schedule does not return a number from 0 to 1.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        factor = schedule.factor(step, self.total, self.warmup)
        if not is_factor(factor):
            at = f"step {step:,} of {self.total:,}"
            raise contract_error(schedule, "factor", factor, f"a number from 0 to 1 (called for {at})")
        return factor


def is_factor(value: Any) -> bool:
    """Return whether a value is a number from 0 to 1, within rounding."""
    return isinstance(value, Real) and 0 <= float(value) <= 1 + 1e-9


def plan_steps(examples: int, section: TrainSection, processes: int = 1) -> Steps:
    """Return the steps of a run over `examples` training examples, which began with so many processes."""
    batch = section.batch_size * section.accumulate * processes
    per_epoch = math.ceil(examples / batch)
    total = max(1, _up(per_epoch * section.epochs))
    total = min(total, section.max_steps or total)
    return Steps(total, per_epoch, warmup_steps(section.warmup, total), batch)


def warmup_steps(warmup: float, total: int) -> int:
    """Return the number of warm-up steps: a share of `total` if below 1, else a number of steps."""
    return min(total, _up(warmup * total) if warmup < 1 else int(warmup))


def _up(steps: float) -> int:
    """Round up, but ignore errors of decimals: 1.1 · 10 is 11.000000000000002."""
    return math.ceil(round(steps, 9))
