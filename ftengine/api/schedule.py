"""Schedules of the learning rate."""

from __future__ import annotations

from abc import abstractmethod

from ftengine.api.component import Component


class Schedule(Component):
    """Says how the learning rate moves after the warm-up; named under `train.schedule` in a recipe."""

    @abstractmethod
    def factor(self, step: int, steps: int, warmup: int) -> float:
        """Return what the peak learning rate is multiplied by at a step: a number from 0 to 1.

        It depends on nothing but its arguments and the options, so that a resumed run needs no state. The warm-up
        itself, linear growth over `train.warmup`, is the engine's.

        Args:
            step: optimiser steps done so far; `warmup` ≤ step < `steps`.
            steps: optimiser steps of the whole run.
            warmup: those that belong to the warm-up.
        """
