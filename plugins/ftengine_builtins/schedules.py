"""Schedules of the learning rate."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from ftengine.api import Config, Schedule, Traits

__all__ = ["Constant", "Cosine", "Linear", "WarmupStableDecay"]


class FloorConfig(Config):
    """Options of a schedule that falls."""

    floor: float = Field(0.0, ge=0, lt=1, description="final learning rate, as a share of the peak")


class Constant(Schedule):
    """Keep the learning rate at its peak."""

    name = "constant"

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return 1.0


class Linear(Schedule):
    """Let the learning rate fall in a straight line."""

    name = "linear"
    Config = FloorConfig

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return _above(self.config.floor, 1.0 - _progress(step, steps, warmup))


class Cosine(Schedule):
    """Let the learning rate fall as half a period of a cosine does."""

    name = "cosine"
    Config = FloorConfig
    traits = Traits(is_default=True)
    paper = "Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983"

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return _above(self.config.floor, 0.5 * (1.0 + math.cos(math.pi * _progress(step, steps, warmup))))


class WarmupStableDecay(Schedule):
    """Keep the learning rate at its peak, and let it fall over the last part of the run (warm-up, stable, decay)."""

    name = "wsd"
    paper = "Hägele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Durations, arXiv:2405.18392"

    class Config(FloorConfig):
        decay: float = Field(
            0.2, gt=0, description="length of the decay: a share of all steps if below 1, else a number of steps"
        )
        shape: Literal["linear", "cosine", "sqrt"] = Field(
            "sqrt",
            description="shape of the decay; sqrt is 1 minus the square root of its progress (Hägele et al. 2024)",
        )

    SHAPES: ClassVar[dict[str, Any]] = {
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
        "sqrt": lambda progress: 1.0 - math.sqrt(progress),
    }

    def factor(self, step: int, steps: int, warmup: int) -> float:
        decay = self.config.decay
        length = math.ceil(round(decay * steps, 9)) if decay < 1 else int(decay)
        start = max(warmup, steps - length)
        if step < start:
            return 1.0
        return _above(self.config.floor, self.SHAPES[self.config.shape](_progress(step, steps, start)))


def _progress(step: int, steps: int, start: int) -> float:
    """Return how far a step is from `start` to the end, from 0 to 1."""
    return (step - start) / max(1, steps - start)


def _above(floor: float, factor: float) -> float:
    """Let a factor that falls from 1 to 0 fall to `floor` instead."""
    return floor + (1.0 - floor) * factor
