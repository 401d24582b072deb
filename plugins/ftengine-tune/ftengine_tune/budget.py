"""The time that a search takes: what it may cost, and whether a limit allows one more step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftengine.errors import InputError
from ftengine.text import duration
from ftengine_tune.halving import ERROR, ETA, RUNGS, rungs_of
from ftengine_tune.result import Trial


@dataclass(frozen=True)
class Budget:
    """A limit of time.

    Args:
        full: estimated seconds of a whole run.
        limit: most seconds of all trials; None: any.
    """

    full: float
    limit: float | None

    def allows(self, trials: Sequence[Trial], rung: int) -> bool:
        """Return whether one more trial may train to a rung, and then one from there to its end."""
        if self.limit is None:
            return True
        shares = (0.0, *_shares(trials))
        fixed = self._fixed(trials)
        more = self.full * (1 - shares[rung - 1]) + fixed * (1 + (rung < RUNGS))
        return sum(trial.seconds for trial in trials) + more <= self.limit

    def require(self, minutes: float | None) -> None:
        """Refuse a time in which two trials cannot be compared, and one be trained to its end (InputError)."""
        least = self.full * (1 + _shares(())[0])
        if self.limit is not None and self.limit < least:
            raise InputError(
                f"--minutes {minutes:g} is too little: two trials to the first rung and one of them to its end take "
                f"about {duration(least)}. Allow more, or make runs shorter, for example with --set train.max_steps=N."
            )

    def line(self, trials: int, steps: int) -> str:
        """Return what a search of trials of so many steps may cost, in a line."""
        first, second, last = rungs_of(steps)
        least = trials * first / last + 1 - first / last
        limit = "" if self.limit is None else f"; {duration(self.limit)} are allowed"
        return (
            f"{trials:,} trials of up to {steps:,} steps, compared after {first:,}, {second:,} and {last:,}: a whole "
            f"run takes about {duration(self.full)}, the search {duration(least * self.full)} to "
            f"{duration(trials * self.full)}{limit}. Of what is compared after a rung, the truly best trial is dropped "
            f"in at most {ERROR:.0%} of searches"
        )

    def _fixed(self, trials: Sequence[Trial]) -> float:
        """Return the seconds that a trial takes for a rung beyond its steps: loading, measuring, saving."""
        rungs = sum(trial.rung for trial in trials)
        share = sum(trial.trained / trial.steps[-1] for trial in trials)
        return max(0.0, sum(trial.seconds for trial in trials) - self.full * share) / rungs if rungs else 0.0


def _shares(trials: Sequence[Trial]) -> list[float]:
    """Return the share of its steps that a trial has trained after each rung."""
    steps = trials[0].steps if trials else rungs_of(ETA**RUNGS)
    return [step / steps[-1] for step in steps]
