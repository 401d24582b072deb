"""Runs trained in separate processes: several strategies on one recipe, or several folds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from accelerate.state import PartialState

from ftengine.api import FittedEvaluator, Listener
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.fine_tune import require_same_data, require_same_recipe
from ftengine.engine.prepared_data import LabelledTask, PreparedData
from ftengine.errors import InputError, RunError, TrainingError, did_you_mean, naming
from ftengine.evaluation.results import bind
from ftengine.identity.base import changes
from ftengine.parallel.precision import choose_precision
from ftengine.run.date import DATE, current_date
from ftengine.run.directory import RunDirectory
from ftengine.run.parent import PARENT
from ftengine.run.recipe import Recipe
from ftengine.run.records import Environment
from ftengine.run.seal import require_sealed


@dataclass(frozen=True)
class Child:
    """One of the runs, or the runs of several seeds (`train.seeds`), which one process trains.

    Args:
        label: distinguishes it from its siblings.
        recipe: the run's recipe, with its own folder.
        rate_from: the origin of its learning rate, if that may differ between siblings.
    """

    label: str
    recipe: Recipe
    rate_from: str = ""

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.recipe.output)

    @property
    def runs(self) -> list[RunDirectory]:
        """Its run, or that of each seed, in order."""
        return [RunDirectory(recipe.output) for recipe in self.recipe.seeded()]


def require_folder(output: str, what: str) -> None:
    """Raise RunError if a folder for runs is a run itself; `what` names these runs in the message."""
    if RunDirectory(output).is_run():
        raise RunError(
            f"output {output!r} is a run itself; {what} are folders inside output. Choose another with --output DIR."
        )


def check_all(
    children: Sequence[Child], listener: Listener, prepare: Callable[[Experiment, PreparedData | None], PreparedData]
) -> list[PreparedData]:
    """Check every run completely, on its data and a model without weights; nothing is written.

    Args:
        children: the runs; all have the same model source.
        listener: receives phases.
        prepare: reads and checks the data of a run, given the data of the first run (None for the first).

    Raises:
        InputError: a run would fail; the message names its label.
    """
    experiments, day = list[Experiment](), _first_day(children)
    for child in children:  # all recipes before any data is read
        with naming(child.label):
            experiments.append(Experiment.open(child.recipe, listener=listener, check_source=not experiments, day=day))
            choose_precision(child.recipe.train.precision, child.recipe.model.dtype, PartialState().device)
    prepared: list[PreparedData] = []
    for child, experiment in zip(children, experiments, strict=True):
        with naming(child.label):
            data = prepare(experiment, prepared[0] if prepared else None)
            evaluation_plan(data)
            if child.recipe.train.seeds > 1:
                require_folder(child.recipe.output, "the runs of its seeds")
            for recipe in Recipe.make(experiment.resolved()).seeded():
                run = RunDirectory(recipe.output)
                if run.is_run():
                    require_same_recipe(run, recipe.resolved())
                    require_same_data(run, data)
                else:
                    run.require_free()
        prepared.append(data)
    return prepared


def _first_day(children: Sequence[Child]) -> date:
    """Return the date for all runs: that of the first one that has begun, or today."""
    begun = (Environment.read(run).date for child in children for run in child.runs if run.is_run())
    return next((day for day in begun if day is not None), current_date())


def require_metric(ready: LabelledTask, metric: str | None) -> None:
    """Raise InputError, listing the measured metrics, if a metric will not be measured."""
    names: list[str] = []
    for evaluator in ready.evaluators():
        every = list(evaluator.metrics)
        bind([evaluator], ready.task.name, ready.task.labels)  # on which it may depend what is reported
        more = every if isinstance(evaluator, FittedEvaluator) else ()  # what fits reports more once it has seen data
        names += [name for name in dict.fromkeys([*evaluator.metrics, *more]) if name not in names]
    if metric is not None and metric not in names:
        raise InputError(f"no metric {metric!r}. Measured: {', '.join(names)}.{did_you_mean(metric, names)}")


def train_unfinished(children: Sequence[Child], prepared: Sequence[PreparedData], listener: Listener) -> list[bool]:
    """Train the unfinished runs one after another; return for each run whether it was reused.

    Raises:
        RunError: a finished run has changed.
    """
    reused = [all(run.finished for run in child.runs) for child in children]
    for child, data, done in zip(children, prepared, reused, strict=True):
        if done:
            for run in child.runs:
                require_sealed(run)
            listener.message(f"{child.label}: {child.run.path} is finished already, its figures are used")
        else:
            train(child, data, listener)
    return reused


def train(child: Child, data: PreparedData, listener: Listener) -> None:
    """Train as `ftengine train --resume` does, and pass the run's messages on.

    Raises:
        InputError, TrainingError: the run ended with an error, which the message repeats.
    """
    folder = RunDirectory(child.run.path.parent)
    folder.create()
    recipe = folder.write_yaml(f"{child.run.path.name}.yaml", data.experiment.resolved())
    listener.phase(f"train {child.label}")
    line = [sys.executable, "-m", "ftengine", "train", str(recipe), "--resume", "--json"]
    last = failure = ""
    # Its standard input ends when this process does, however that ends: the child watches it.
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    watched = {**os.environ, PARENT: str(os.getpid()), DATE: data.experiment.day.isoformat()}
    with subprocess.Popen(line, text=True, errors="replace", env=watched, **pipes) as process:
        try:
            for text in process.stderr or ():
                listener.message(f"{child.label}: {text.rstrip()}")
                last = text.strip() or last
                failure = last if last.startswith("error: ") else failure
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        kind = InputError if process.returncode == InputError.exit_code else TrainingError
        reason = failure.removeprefix("error: ") or f"ended with status {process.returncode}{last and f': {last}'}."
        raise kind(f"{child.label}: {reason} Finished runs are kept; the same command goes on from here.")


def require_alike(children: Sequence[Child]) -> None:
    """Raise RunError if runs have different bases, precisions or devices, since these change figures, too."""
    environments = [(child, Environment.read(run)) for child in children for run in child.runs]
    first = environments[0][1]
    for child, environment in environments:
        differing = [f"of their base, {what} differ" for what in changes(first.base, environment.base)]
        for key in ("precision", "device"):
            differing += [f"their {key} differs"] if getattr(environment, key) != getattr(first, key) else []
        if differing:
            raise RunError(
                f"{children[0].label} and {child.label} were not trained alike: {'; '.join(differing)} (see "
                "environment.json of their runs). Remove the older run, or choose another folder with --output DIR."
            )
