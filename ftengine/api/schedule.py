"""Schedules of the learning rate."""

from __future__ import annotations

from abc import abstractmethod

from ftengine.api.component import Component


class Schedule(Component):
    """Sets how the learning rate changes after the warm-up; named under `train.schedule` in a recipe."""

    @abstractmethod
    def factor(self, step: int, steps: int, warmup: int) -> float:
        """Return the factor, from 0 to 1, of the peak learning rate at a step.

        It depends on nothing but its arguments and the options, so that a resumed run needs no state. The engine does
        the warm-up, linear growth over `train.warmup`.

        Args:
            step: optimiser steps done so far; `warmup` ≤ step < `steps`.
            steps: optimiser steps of the whole run.
            warmup: those that belong to the warm-up.
        """
