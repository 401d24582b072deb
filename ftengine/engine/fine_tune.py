"""Fine-tuning from recipe to report: read, prepare, train, evaluate, save."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from typing import Any

from accelerate.utils import broadcast_object_list

from ftengine.api import Callback, Failed, Finished, Listener, Saved
from ftengine.data.augmentation_preview import idle_augmenters
from ftengine.engine.experiment import Experiment
from ftengine.engine.finished import Run, load_run
from ftengine.engine.plan import Plan, plan
from ftengine.engine.prepared_data import PreparedData, prepare_data
from ftengine.engine.prepared_model import PreparedModel, TrainedModel, measure_tuned, prepare_model, train_model
from ftengine.engine.references import dropout_beside_reference
from ftengine.engine.run_outputs import RunOutputs, forget_outputs
from ftengine.engine.saved_part import check_trained_part, keep_calibration, marking_unchecked, save_trained_part
from ftengine.engine.shared import Shared
from ftengine.errors import InputError, RunError
from ftengine.evaluation.results import calibrate, evaluate, measure_all
from ftengine.evaluation.runner import EvalResult, save_predictions
from ftengine.identity.base import changes
from ftengine.parallel.device import processes
from ftengine.parallel.heartbeat import heartbeat
from ftengine.parallel.launch import resolve_launch
from ftengine.parallel.rendezvous import timeout
from ftengine.plugins.registry import Registry
from ftengine.report.write import conclude, concluded
from ftengine.run.date import current_date
from ftengine.run.directory import STOP, RunDirectory
from ftengine.run.environment import peak_memory_bytes
from ftengine.run.phases import TimedPhases
from ftengine.run.progress import listening
from ftengine.run.recipe import Recipe
from ftengine.run.record import flat
from ftengine.run.records import AuditResult, Environment, EvaluationResult, TrainingResult
from ftengine.run.seal import seal, unseal

NFS_TIMEOUT = 60.0
"""Seconds after which every client of a network file system has noticed a new file."""

__all__ = ["Plan", "Run", "fine_tune", "load_run", "plan"]


def fine_tune(
    recipe: Recipe,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    registry: Registry | None = None,
    shared: Shared | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Fine-tune a model as a recipe says.

    Args:
        recipe: what to do.
        resume: continue an unfinished run in `recipe.output`; a finished one is returned as it is, and
            where there is none, a new one begins. Workers that torchrun restarts continue the run.
        listener: receives phases and steps; by default they are shown on stderr as by `ftengine train`: bars on
            a terminal, else a few lines. `ftengine.api.SilentListener()` shows nothing.
        registry: components; by default those of all installed plugins.
        shared: of other runs in this process whose recipes differ in training alone: rows and base are read once.
        callbacks: the caller's own, beside the recipe's; a run that is resumed without them is the same.

    Returns:
        The finished run.

    Raises:
        InputError: the recipe, data, model source or output folder is wrong; nothing was written.
        TrainingError: training cannot go on; the run keeps its last checkpoint.
        ProcessLost: one of several processes is gone; the run keeps its last checkpoint.
    """
    require_one_seed(recipe)
    recipe = resolve_launch(recipe)
    with listening() if listener is None else nullcontext(listener) as shown, heartbeat():
        run = RunDirectory(recipe.output)
        resuming, day = _resumes(run, resume)
        phases = TimedPhases(shown)
        experiment = Experiment.open(recipe, registry, phases, day=day)
        experiment.callbacks.callbacks += [(callback, "the caller") for callback in callbacks]
        if resuming:
            require_same_recipe(run, experiment.resolved())
        if resuming and run.finished:
            experiment.listener.message(f"{run.path} is finished; nothing to resume")
            if not concluded(run) and processes().is_main_process:
                with run_lock(run, resuming):
                    run.clear_partial()
                    unseal(run)
                    finish(experiment, run)
        else:
            data = prepare_data(experiment) if shared is None else shared.prepare(experiment)
            if resuming:
                require_same_data(run, data)
            _report(data)
            train(prepare_model(data, run if resuming else None), run, resuming, phases)
        return load_run(run.path, registry=experiment.registry, listener=experiment.listener, trust_code=True)


def require_one_seed(recipe: Recipe) -> None:
    """Refuse a recipe of several runs."""
    if recipe.train.seeds > 1:
        raise InputError(
            f"train.seeds is {recipe.train.seeds}: this trains one run of a recipe. Set train.seeds to 1 here; "
            "`ftengine train`, `seeds`, `compare` and `cross-validate` train several."
        )


def _resumes(run: RunDirectory, resume: bool) -> tuple[bool, date | None]:
    """Return whether an unfinished run is resumed, and its date, as the main process sees it.

    The date is None for runs of older versions. Raises RunError if the folder is in use.
    """
    state = processes()
    resumes = run.is_run() and (resume or restarted(run))
    day = Environment.read(run).date if resumes else current_date()
    resumes, day = broadcast_object_list([resumes, day])  # another host may not see the folder, or have another day
    if not resumes:
        run.require_free()
    if state.is_main_process:
        run.require_unlocked()
    return resumes, day


def _report(data: PreparedData) -> None:
    """Send the warnings about data and recipe to the listener before training."""
    listener = data.experiment.listener
    for finding in data.audit.findings:
        if finding.level != "good":
            listener.message(f"{finding.kind}: {finding.text}")
    for idle in idle_augmenters(data.encoded["train"]):
        listener.message(idle)
    if noise := dropout_beside_reference(data.ready):
        listener.message(noise)


def train(model: PreparedModel, run: RunDirectory, resuming: bool, phases: TimedPhases) -> None:
    """Train a prepared model and write all results.

    Raises:
        RunError: a resumed run has changed, or the folder cannot be written.
        TrainingError: training cannot go on; the run keeps its last checkpoint.
        SavedPartDiffers: the saved files do not restore the tuned model; the run keeps its last checkpoint.
    """
    trainer = model.trainer(run)
    with run_lock(run, resuming) if model.device.is_main else nullcontext():
        if resuming:
            continue_run(run, model)
            trainer.resume()
        else:
            begin_run(run, model)
        progress = trainer.progress
        try:
            trained = train_model(model, trainer, run)
            del trainer  # the optimiser's memory goes before a second model comes
            if model.device.is_main:
                write_trained(trained, run, phases)
            with marking_unchecked(run, model.experiment.listener) if model.device.is_main else nullcontext():
                tuned = measure_tuned(trained, run)
                if model.device.is_main:
                    write_results(trained, tuned, run, phases)
        except BaseException as error:  # interrupted or failed: callbacks may have something open
            model.notify(Failed(run.path, progress.step, error))
            raise
        if model.device.is_main:
            finish(model.experiment, run)
    model.device.wait()


def restarted(run: RunDirectory) -> bool:
    """Return whether the launcher of a run has restarted its workers, after a failure or with other hosts."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    again = launch != "none" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return launch is not None and again and Environment.read(run).launch == launch


@contextmanager
def run_lock(run: RunDirectory, resuming: bool) -> Iterator[None]:
    """Lock a run directory (RunError: another process holds the lock); remove a request to stop an earlier process."""
    run.create()
    with run.locked():
        if not resuming:
            run.require_free()  # another run may have ended since the first look
        run.remove(run.path / STOP)
        yield


def finish(experiment: Experiment, run: RunDirectory) -> None:
    """Write the verdict and the report of a measured run, notify callbacks, and seal the run."""
    steps, evaluation = TrainingResult.read(run).steps, EvaluationResult.read(run)
    experiment.callbacks.notify(Saved(run.path, steps, run.trained))
    conclude(run, experiment.registry)
    experiment.callbacks.notify(Finished(run.path, steps, evaluation.to_json()))
    forget_outputs(run)
    if (run.path / STOP).exists():
        experiment.listener.message(f"file {STOP!r} came after the last step: the run went on to its end")
        run.remove(run.path / STOP)
    seal(run)


def begin_run(run: RunDirectory, model: PreparedModel) -> None:
    """Make the run directory and record what the run is (RunError where it cannot be written)."""
    if model.device.is_main:
        model.data.audit.write(run)
        model.environment().write(run)
        run.write_yaml("recipe.yaml", model.experiment.resolved())  # from here on, the run can be resumed
    model.device.wait()
    require_shared_folder(run)


def require_shared_folder(run: RunDirectory) -> None:
    """Raise RunError if this process's host does not share the folder with the main process."""
    deadline = time.monotonic() + min(NFS_TIMEOUT, timeout())
    while not run.is_run():
        if time.monotonic() > deadline:
            raise RunError(
                f"output {str(run.path)!r} does not exist on host {socket.gethostname()}: process 0 writes there, and "
                "all read checkpoints. Choose a folder on a file system that all hosts share, with --set output=DIR."
            )
        time.sleep(0.1)


def continue_run(run: RunDirectory, model: PreparedModel) -> None:
    """Check that a resumed run has not changed, and remove files that a killed process left half-written.

    Raises:
        RunError: the base model or the precision has changed.
    """
    require_shared_folder(run)
    before, now = Environment.read(run), model.environment()
    changed = [f"of its base model, {what} differ" for what in changes(before.base, now.base)]
    if before.precision != now.precision:
        old, new = (environment.precision.model_dump() for environment in (before, now))
        changed.append(f"its precision was {old!r} and is now {new!r}")
    if changed:
        raise RunError(
            f"run {str(run.path)!r} cannot be resumed: {'; '.join(changed)}. Restore that, or start a new run with "
            "--set output=DIR."
        )
    if model.device.is_main:
        run.clear_partial()
        unseal(run)
    model.device.wait()


def require_same_recipe(run: RunDirectory, resolved: dict[str, Any]) -> None:
    """Raise RunError, naming the keys that differ, if a run was started with another recipe."""
    stored, now = flat(Recipe.read(run.path / "recipe.yaml").resolved()), flat(resolved)
    differing = [key for key in now if now[key] != stored.get(key) and key != "output"]
    if differing:
        raise RunError(
            f"run {str(run.path)!r} was started with another recipe; {', '.join(differing)} "
            f"{'differs' if len(differing) == 1 else 'differ'}. Resume with the recipe that it began with "
            f"({run.path / 'recipe.yaml'}), or start a new run with --set output=DIR."
        )


def require_same_data(run: RunDirectory, data: PreparedData) -> None:
    """Raise RunError if the data of a run has changed."""
    if AuditResult.read(run).contents != {name: split.content for name, split in data.encoded.items()}:
        raise RunError(
            f"the data files have changed since run {str(run.path)!r} was made. Restore them, or choose another folder "
            "with --set output=DIR."
        )


def write_trained(trained: TrainedModel, run: RunDirectory, phases: TimedPhases) -> None:
    """Write the trained part first, since later steps may fail, then training's results and the base's outputs."""
    model = trained.prepared
    save_trained_part(model, trained.gathered_model, run)
    RunOutputs.of(model.device, run, model.data.ready, model.plan, "base").keep_files(model.base.outputs)
    _write_training(trained, run, phases)


def _write_training(trained: TrainedModel, run: RunDirectory, phases: TimedPhases) -> None:
    measured = {"peak_memory_bytes": peak_memory_bytes(), "phases": phases.seconds()}
    trained.result.model_copy(update=measured).write(run)


def write_results(trained: TrainedModel, tuned: EvalResult, run: RunDirectory, phases: TimedPhases) -> None:
    """Write prediction tables and figures, and check the trained part; each file stays if a later step fails."""
    model = trained.prepared
    save_predictions(run, base=model.base, tuned=tuned)
    keep_calibration(model.loaded, run, *calibrate(model.data.ready.task, model.plan, tuned))
    model.experiment.listener.phase("figures")
    figures, changed = evaluate(model.plan, model.measured, measure_all(model.plan, tuned))
    if changed is not None:
        changed.write(run)
    figures.write(run)
    check_trained_part(model, run)
    _write_training(trained, run, phases)
