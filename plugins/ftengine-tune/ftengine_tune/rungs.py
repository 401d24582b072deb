"""Trials train rung by rung; those that are surely behind are dropped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftengine import Recipe, Shared, plan
from ftengine.api import Listener
from ftengine.errors import FtengineError, RunError, TrainingError
from ftengine.identity import require_same_base
from ftengine.text import counted, number
from ftengine_tune.budget import Budget
from ftengine_tune.division import trial_recipe
from ftengine_tune.halving import RUNGS, Behind, compare, ending, rungs_of
from ftengine_tune.result import Dropped, RungResult, Trial, Tuning
from ftengine_tune.samplers import new_values
from ftengine_tune.space import Dimension, shown, with_values
from ftengine_tune.trial import NoLosses, Validations, train_to

LENGTH = ("train.epochs", "train.max_steps", "train.batch_size", "train.accumulate")
"""Keys on which the number of steps depends."""


class Rungs:
    """The trials of a search.

    Args:
        recipe: as it is written; its output is the folder of the search.
        tuning: how far the search is; written to tune.json after each change.
        files: the splits.
        groups: (n,) equal for validation examples that are not independent.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: Sequence[Dimension],
        tuning: Tuning,
        files: dict[str, Path],
        groups: np.ndarray,
        budget: Budget,
        listener: Listener,
    ) -> None:
        self.recipe, self.space, self.tuning, self.files = recipe, space, tuning, files
        self.groups, self.budget, self.listener = groups, budget, listener
        self.folder = Path(recipe.output)
        self._shared = Shared()

    def run(self, own: dict[str, Any] | None) -> None:
        """Train trials rung by rung until the search ends; what was done before is not done again.

        Args:
            own: the recipe's own values, which the first trial has; None if the space does not hold them.

        Raises:
            TrainingError: all trials failed.
        """
        tuning = self.tuning
        if len(tuning.rungs) < 1:
            self._begin(own)
            self._decide(1)
        for rung in range(len(tuning.rungs) + 1, RUNGS + 1):
            # The best one first, which is trained on if the time is up.
            for trial in sorted(tuning.in_state("open"), key=lambda trial: self.kept(trial, rung - 1)[0]):
                if tuning.ended is not None or trial.rung >= rung:
                    continue
                if not self.budget.allows(tuning.trials, rung):
                    tuning.ended = "time"
                else:
                    self._train(trial, rung)
            if tuning.ended is None:
                self._decide(rung)
        if tuning.ended is None:
            tuning.ended = "all rungs"
        tuning.best = self._best_at_its_end().number
        tuning.not_told_apart = [one for one in tuning.not_told_apart if one != tuning.best]

    def _begin(self, own: dict[str, Any] | None) -> None:
        """Train all trials to the first rung, as far as the time allows."""
        tuning = self.tuning
        for count in range(1, tuning.planned + 1):
            if count > len(tuning.trials):
                if not self.budget.allows(tuning.trials, 1):
                    tuning.ended = "time"
                    return
                earlier = [(one.values, self.kept(one, 1)[0] if one.rung else None) for one in tuning.trials]
                # A seed for each trial, so that an interrupted search proposes what a whole one does.
                seed = self.recipe.seed, count
                values = own if count == 1 and own else new_values(tuning.sampler, self.space, earlier, seed)
                if values is None:
                    self.listener.message(f"the ranges hold no further values: there are {count - 1:,} trials")
                    return
                tuning.trials.append(self._planned(count, values))
                tuning.write(self.folder)
            trial = tuning.trials[count - 1]
            if trial.state == "open" and trial.rung < 1:
                self._train(trial, 1)

    def _planned(self, count: int, values: dict[str, Any]) -> Trial:
        place = self.folder / "trials" / f"{count:03d}"
        if self.tuning.trials and not any(dimension.key in LENGTH for dimension in self.space):
            steps = self.tuning.trials[0].steps
        else:
            recipe = trial_recipe(with_values(self.recipe, values), self.files, place)
            steps = rungs_of(plan(recipe, measure=False).steps["total"])
        return Trial(number=count, values=values, steps=steps, run=str(place))

    def kept(self, trial: Trial, rung: int) -> tuple[float, np.ndarray]:
        """Return the validation loss of a trial after a rung, and the summed loss of each example (n,)."""
        return Validations.read(self._file(trial)).kept(trial.steps[rung - 1], self.recipe.train.keep_best)

    def _file(self, trial: Trial) -> Path:
        return self.folder / "losses" / f"{trial.number:03d}.npz"

    def _train(self, trial: Trial, rung: int) -> None:
        """Train a trial to a rung, or note why it fails."""
        began, until = time.monotonic(), trial.steps[rung - 1]
        self.listener.phase(f"trial {trial.number} of {self.tuning.planned}, rung {rung}")
        recipe = with_values(self.recipe, {**trial.values, **every_rung(trial)})
        recipe = trial_recipe(recipe, self.files, Path(trial.run))
        try:
            done = int(Validations.read(self._file(trial)).steps.max(initial=0)) >= until
            if rung == RUNGS or not done:
                ended = train_to(recipe, self._file(trial), None if rung == RUNGS else until, self._shared)
                trial.state = "finished" if ended else "open"  # by early stopping before the last rung
            trial.rung, trial.loss = rung, self.kept(trial, rung)[0]
        except NoLosses:
            raise
        except (FtengineError, torch.OutOfMemoryError) as error:
            trial.state, trial.reason = "failed", " ".join(str(error).split())
        trial.seconds = round(trial.seconds + time.monotonic() - began, 3)
        self.tuning.write(self.folder)
        result = f"failed: {trial.reason}" if trial.state == "failed" else f"validation loss {number(trial.loss, 4)}"
        values = ", ".join(f"{key.split('.', 1)[1]} {shown(value)}" for key, value in trial.values.items())
        self.listener.message(
            f"trial {trial.number} of {self.tuning.planned}, step {until:,} of {trial.steps[-1]:,}: {values}: {result}"
        )

    def _decide(self, rung: int) -> None:
        """Drop the trials that are surely behind after a rung, and see whether the search ends."""
        tuning = self.tuning
        alive = self._alive()
        results = self._compared(alive, rung)
        dropped, near = [], []
        for trial, result in zip(alive, results, strict=True):
            if not result.surely:
                near.append(trial)
            elif rung < RUNGS:
                other = alive[result.other]
                difference = self.kept(trial, rung)[0] - self.kept(other, rung)[0]
                trial.state = "dropped"
                trial.dropped = Dropped(rung=rung, behind=other.number, difference=difference, p=result.p)
                dropped.append(trial.number)
        tuning.rungs.append(RungResult(compared=[trial.number for trial in alive], dropped=dropped))
        tuning.not_told_apart = [trial.number for trial in near] if len(near) > 1 else []
        tuning.ended = tuning.ended or ending(rung, len(near), len(dropped))
        tuning.write(self.folder)
        best = min(near, key=lambda trial: self.kept(trial, rung)[0])
        self.listener.message(
            f"rung {rung} of {RUNGS}: {counted(len(alive), 'trial')} compared, {len(dropped):,} dropped; "
            f"trial {best.number} has the lowest validation loss there"
        )

    def _alive(self) -> list[Trial]:
        """Return the trials that are neither dropped nor failed (TrainingError: there is none)."""
        if alive := self.tuning.in_state("open", "finished"):
            return alive
        reason = self.tuning.in_state("failed")[-1].reason
        raise TrainingError(f"no trial is left; the last one of {len(self.tuning.trials):,} failed: {reason}")

    def _compared(self, alive: Sequence[Trial], rung: int) -> list[Behind]:
        """Compare trials after a rung (RunError: they have different examples, or another base)."""
        rows = [self.kept(trial, rung)[1] for trial in alive]
        if any(len(row) != len(self.groups) for row in rows):
            raise RunError(
                f"trials of {str(self.folder)!r} have different validation examples: their options leave rows out. "
                "Take these options out of the search."
            )
        bases = [json.loads((Path(trial.run) / "environment.json").read_text("utf-8"))["base"] for trial in alive]
        for trial, base in zip(alive, bases, strict=True):
            where = f"trial {trial.run!r} cannot be compared with {alive[0].run!r}, which"
            require_same_base(base, bases[0], self.recipe.model.source, where)
        return compare(np.stack(rows), self.groups, self.tuning.planned)

    def _best_at_its_end(self) -> Trial:
        """Return the best trial, trained to its end; if it fails, the next one (TrainingError: there is none)."""
        while True:
            rung = self.tuning.last_common_rung
            reached = [trial for trial in self._alive() if trial.reached(rung)]
            best = min(reached, key=lambda trial: self.kept(trial, rung)[0])
            if best.state == "finished":
                return best
            self.listener.message(f"trial {best.number} is trained to its end")
            self._train(best, RUNGS)


def every_rung(trial: Trial) -> dict[str, int]:
    """Return the values by which a trial is validated and saved at each rung."""
    return {"train.validate_every": trial.steps[0], "train.checkpoint_every": trial.steps[0]}
