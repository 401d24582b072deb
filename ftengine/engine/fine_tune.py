"""The engine: load, prepare, train, evaluate, save. Reads like a table of contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftengine.api import (
    Event,
    Failed,
    Finished,
    Listener,
    LoadedModel,
    Reopens,
    Saved,
    SilentListener,
    Started,
    Strategy,
)
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Job, described
from ftengine.engine.finished import Run, load_run
from ftengine.engine.plan import Plan, plan
from ftengine.engine.session import Session
from ftengine.errors import RecipeError, RunError
from ftengine.evaluation.runner import save_predictions
from ftengine.model import count
from ftengine.plugins.registry import Registry
from ftengine.report.write import conclude, concluded
from ftengine.run.directory import SIDECAR, RunDirectory
from ftengine.run.environment import versions
from ftengine.run.recipe import Recipe
from ftengine.run.records import AuditResult

__all__ = ["Plan", "Run", "fine_tune", "load_run", "plan"]


def fine_tune(
    recipe: Recipe, *, resume: bool = False, listener: Listener | None = None, registry: Registry | None = None
) -> Run:
    """Fine-tune a model as a recipe says.

    Args:
        recipe: what to do.
        resume: continue an unfinished run in `recipe.output`; a finished one is returned as it is, and
            where there is none, a new one begins.
        listener: told of phases and steps.
        registry: components; by default those of all installed plugins.

    Returns:
        The finished run.

    Raises:
        InputError: recipe, data, model source or output folder are wrong; nothing has been written then.
        TrainingError: training cannot go on; the run keeps its last checkpoint.
    """
    listener = listener or SilentListener()
    run = RunDirectory(recipe.output)
    resuming = resume and run.is_run()
    if not resuming:
        run.require_free()

    job = Job.open(recipe, registry, listener)
    if resuming:
        require_same_recipe(run, job.resolved())
        if run.finished:
            listener.message(f"{run.path} is finished; nothing to resume")
            if not concluded(run):
                complete(run, job, Session(job))
            return load_run(run.path, registry=job.registry, listener=listener)
    splits = job.read_data()
    job.load_skeleton()
    encoded = job.encode(splits)
    for finding in job.audit.findings:
        if finding.level != "good":
            listener.message(f"{finding.kind}: {finding.text}")
    evaluating = evaluation_plan(job, encoded, splits)
    session = Session(job)

    loaded = job.load_model()
    batched = [*encoded.values(), *evaluating.encoded()]
    require_room(loaded, batched)
    session.place_base(loaded)
    base = session.predictions(loaded, evaluating, "base")
    session.prepare(loaded)
    require_room(loaded, batched)  # a strategy may take some of it
    trained, total = count(loaded.module)
    listener.message(f"{trained:,} of {total:,} parameters train, in {session.precision.name}")

    def tell(event: Event) -> None:
        if session.is_main:
            job.callbacks.tell(event)

    trainer = session.trainer(loaded, encoded, run, evaluating.general, tell)
    begin(run, job, session, loaded, resuming)
    if resuming:
        trainer.resume()
    tell(Started(run.path, trainer.progress.step, job.resolved()))
    try:
        result = trainer.train()
        tuned = session.predictions(loaded, evaluating, "tuned")
        if session.is_main:
            save(run, job, loaded)
            tell(Saved(run.path, result.steps, run.trained))
            run.write_json("training.json", session.training_facts(loaded, result))
            evaluation = session.evaluate(evaluating, base, tuned)
            save_predictions(run, base, tuned)
            if (changed := evaluation.examples()) is not None:
                run.write_json("examples.json", changed)
            run.write_json("evaluation.json", evaluation.report)
    except BaseException as error:  # interrupted or failed: callbacks may have something open
        tell(Failed(run.path, trainer.progress.step, error))
        raise
    complete(run, job, session)
    return load_run(run.path, registry=job.registry, listener=listener)


def complete(run: RunDirectory, job: Job, session: Session) -> None:
    """Write verdict and report of a run whose figures are there, and tell callbacks that it is finished."""
    if session.is_main:
        conclude(run)
        steps = run.read_json("training.json")["steps"]
        job.callbacks.tell(Finished(run.path, steps, run.read_json("evaluation.json")))
    session.wait()


def require_room(loaded: LoadedModel, splits: Sequence[EncodedSplit]) -> None:
    """Refuse examples longer than the model, which a loader without skeletons can tell only now.

    Raises:
        RecipeError: names the lengths.
    """
    longest = max(split.longest for split in splits)
    if loaded.max_length is not None and longest > loaded.max_length:
        raise RecipeError(
            f"the longest example has {longest} tokens, the model takes {loaded.max_length}. "
            f"Set task.max_length={loaded.max_length}, or less."
        )
    for split in splits:
        split.room = loaded.max_length  # examples may grow when they are augmented


def begin(run: RunDirectory, job: Job, session: Session, loaded: LoadedModel, resuming: bool) -> None:
    """Make the run directory and record what the run is; on resume, check that it is still the same.

    Raises:
        RunError: data, base model, number of processes or precision changed since the run began, or the folder
            cannot be written.
    """
    environment = session.environment(loaded)
    if resuming:
        if AuditResult.read(run).contents != job.audit.contents:
            raise RunError(
                f"run {str(run.path)!r} cannot be resumed: the data files changed since it began. "
                "Restore them, or start a new run with --set output=DIR."
            )
        before = run.read_json("environment.json")
        for key, what in (("base", "base model"), ("processes", "number of processes"), ("precision", "precision")):
            if before[key] != environment[key]:
                raise RunError(
                    f"run {str(run.path)!r} cannot be resumed: its {what} was {before[key]!r} and is now "
                    f"{environment[key]!r}. Restore that, or start a new run with --set output=DIR."
                )
        if session.is_main:
            run.clear_partial()
        session.wait()
        return
    if session.is_main:
        run.create()
        job.audit.write(run)
        run.write_json("environment.json", environment)
        run.write_yaml("recipe.yaml", job.resolved())
    session.wait()


def require_same_recipe(run: RunDirectory, resolved: dict[str, Any]) -> None:
    """Refuse to resume a run under another recipe.

    Raises:
        RunError: names the keys that differ.
    """
    stored = Recipe.read(run.path / "recipe.yaml").resolved()
    differing = [key for key in _flat(resolved) if _flat(resolved)[key] != _flat(stored).get(key) and key != "output"]
    if differing:
        raise RunError(
            f"run {str(run.path)!r} was started with another recipe; {', '.join(differing)} "
            f"{'differs' if len(differing) == 1 else 'differ'}. Resume with the recipe that it began with "
            f"({run.path / 'recipe.yaml'}), or start a new run with --set output=DIR."
        )


def save(run: RunDirectory, job: Job, loaded: LoadedModel) -> None:
    """Write the trained part, its processor and ftengine's own facts."""
    job.listener.phase("save")

    def fill(folder: Path) -> None:
        job.strategy.save(loaded, folder)
        if hasattr(loaded.processor, "save_pretrained"):
            loaded.processor.save_pretrained(folder)
        RunDirectory(folder).write_json(SIDECAR, sidecar(job, loaded))

    run.write_folder(run.trained, fill)


def sidecar(job: Job, loaded: LoadedModel) -> dict[str, Any]:
    """Return ftengine's own facts about a trained part."""
    return {
        "ftengine": versions()["ftengine"],
        "base": {"source": loaded.source, **loaded.fingerprint},
        "strategy": _reopened(job.strategy),
        "task": described(job.task),
        "labels": asdict(job.task.labels) if job.task.labels else None,
        "new_modules": list(loaded.new_modules),
    }


def _reopened(strategy: Strategy) -> dict[str, Any]:
    """Return name and options under which a finished run prepares its strategy again."""
    return {"name": strategy.name, **strategy.reopened()} if isinstance(strategy, Reopens) else described(strategy)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        return {prefix.rstrip("."): content}
    return {k: v for key, value in content.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
