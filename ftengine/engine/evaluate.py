"""Evaluating a finished run again: on its own held-out examples, on new data, or with further evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ftengine.api import FittedEvaluator
from ftengine.api.task_sorts import reference_keys
from ftengine.data.encoding import content_of
from ftengine.data.row_hashes import identities
from ftengine.data.rows import DataRows
from ftengine.data.split import make_splits, read_for
from ftengine.engine.base_predictions import run_base, run_model
from ftengine.engine.evaluation_plan import plan_evaluation, trained_rows, without_leaks
from ftengine.engine.prepared_data import LabelledTask, ReadyTask, held_out
from ftengine.engine.prepared_model import load_base_of, place_base, prepare_strategy
from ftengine.engine.references import ask_reference, reference_starts
from ftengine.engine.saved_part import load_trained_part
from ftengine.errors import DataError, InputError
from ftengine.evaluation.plan import EvalPlan
from ftengine.evaluation.results import evaluate, measure_all
from ftengine.evaluation.stored import add_evaluators
from ftengine.parallel.device import Device, processes
from ftengine.report.write import conclude
from ftengine.run.directory import RunDirectory
from ftengine.run.recipe import Recipe
from ftengine.run.records import AuditResult, Environment, EvaluationResult, TrainedPart
from ftengine.training.steps import plan_steps


def evaluate_run(
    ready: ReadyTask, run: RunDirectory, trained: TrainedPart, data: str | Path | None
) -> EvaluationResult:
    """Evaluate the base and tuned model of a finished run on a data file (None: its own held-out split).

    Raises:
        InputError: the data cannot be used, or the base is not the one trained on.
    """
    plan = _plan(ready, run, data)
    plan.start_evaluators()
    device = Device.open(ready.recipe)
    loaded = load_base_of(ready, trained, run.trained)
    place_base(device, ready, loaded)
    starting = reference_model(ready, run) if reference_keys(ready.task) else ready
    strategy = prepare_strategy(device, starting, loaded) if reference_starts(starting) else None
    base = run_base(device, ready, loaded, plan, strategy)
    ask_reference(device, ready, loaded, plan, base, starting=strategy)
    strategy = strategy or prepare_strategy(device, ready, loaded)
    load_trained_part(strategy, loaded, run.trained)
    tuned = run_model(device, ready, loaded, plan, "tuned")
    ready.listener.phase("figures")
    return evaluate(plan, measure_all(plan, base), measure_all(plan, tuned))[0]


def reference_model(labelled: LabelledTask, run: RunDirectory) -> LabelledTask:
    """Return a run's task with its strategy as training began (RunError: the part that it started from is gone)."""
    make = labelled.registry.factory("strategy", Recipe.read(run.path / "recipe.yaml").strategy, "strategy")
    return replace(labelled, experiment=replace(labelled.experiment, make_strategy=make))


def add_figures(ready: LabelledTask, run: RunDirectory, specs: Sequence[str | Mapping[str, Any]]) -> EvaluationResult:
    """Add the figures of further evaluators to evaluation.json, computed from the stored predictions.

    The run is judged again: verdict.json and report.html are rewritten.

    Raises:
        InputError: an evaluator does not exist, or reads a key that the run did not store.
        RunError: a file of the run is missing or damaged, or one cannot be written.
    """
    own = {spec["name"]: spec for spec in ready.recipe.evaluate}
    named = [{"name": spec} if isinstance(spec, str) else dict(spec) for spec in specs]
    # One that the recipe names has the recipe's options: its figures stand under the same names.
    named = [own.get(spec.get("name"), spec) if len(spec) == 1 else spec for spec in named]
    built = [ready.registry.build("evaluator", spec, "--evaluators") for spec in named]
    is_main = processes().is_main_process
    with run.records_locked() if is_main else nullcontext():
        report = add_evaluators(run, built, ready.task, ready.recipe)
        if is_main:
            conclude(run, ready.registry, report)
    if is_main:
        ready.listener.message(
            f"added to evaluation.json of {run.path}; verdict.json and report.html were written anew"
        )
    return report


def held_out_rows(ready: ReadyTask, run: RunDirectory, data: str | Path | None) -> tuple[str, DataRows]:
    """Return the name and rows of a data file, or of a run's own held-out split (DataError: its data has changed)."""
    if data is not None:
        return str(data), read_for(str(data), ready.recipe.data, ready.task, ready.registry)
    recorded = AuditResult.read(run).contents
    name = held_out(recorded)
    if name is None:
        raise InputError("this run has no held-out split; name a data file with --data FILE.")
    return name, _splits(ready, run, {name}, recorded, name)[0][name]


def _plan(ready: ReadyTask, run: RunDirectory, data: str | Path | None) -> EvalPlan:
    recorded = AuditResult.read(run).contents
    name = held_out(recorded) if data is None else "test"
    if name is None:
        raise InputError("this run has no held-out split; name a data file with --data FILE.")
    section = ready.recipe.evaluation
    used = {name} if data is None else set()
    if section.training_sample is not None or section.memorisation is not None:
        used.add("train")
    if name == "test" and any(isinstance(evaluator, FittedEvaluator) for evaluator in ready.evaluators()):
        used.add("validation")
    splits, trained_on = _splits(ready, run, used & set(recorded), recorded, name if data is None else None)
    rows = splits[name] if data is None else read_for(str(data), ready.recipe.data, ready.task, ready.registry)
    if data is not None and "train" in splits:
        _tell_of_trained_rows(ready, rows, splits["train"])
    if "train" in splits:
        splits["train"] = _trained(ready, run, splits["train"])
    split, validation = ready.encode(name, rows), None
    split, leaked = without_leaks(split, trained_on.get(name) if data is None else None)
    if name != "validation" and "validation" in splits:
        validation, _ = without_leaks(ready.encode("validation", splits["validation"]), trained_on.get("validation"))
    called = name if data is None else str(data)
    return plan_evaluation(
        ready,
        called,
        split,
        train=splits.get("train"),
        validation=validation,
        leaked=leaked,
        lenient=data is not None,
    )


def _trained(ready: ReadyTask, run: RunDirectory, train: DataRows) -> DataRows:
    """Return the training rows that a run really trained on."""
    examples, began = AuditResult.read(run).encoded["train"]["examples"], Environment.read(run).processes
    steps = plan_steps(examples, ready.recipe.train, began)
    some = steps.total < steps.per_epoch or ready.recipe.train.sampling != "shuffle" or ready.recipe.data.weighted
    return trained_rows(ready.encode("train", train, quiet=True), steps, ready.recipe.training_seed) if some else train


def _tell_of_trained_rows(ready: ReadyTask, rows: DataRows, train: DataRows) -> None:
    """Tell the listener how many of the rows also occur, word for word, in the training data."""
    trained = np.isin(identities(rows, ready.task, 0), identities(train, ready.task, 0))
    if trained.any():
        first = rows.where(int(np.flatnonzero(trained)[0]))
        ready.listener.message(
            f"{int(trained.sum()):,} of the {len(rows):,} rows of {rows.source} were trained on, e.g. {first}: "
            "figures on them say nothing about new data"
        )


def _splits(
    ready: ReadyTask, run: RunDirectory, used: set[str], recorded: Mapping[str, str], needed: str | None
) -> tuple[dict[str, DataRows], Mapping[str, np.ndarray]]:
    """Return the run's own splits that are unchanged and needed, and the rows that were trained on.

    Args:
        recorded: hash of each split's content when the run was made.
        needed: the split that must be unchanged; otherwise a DataError says why it is missing.
    """
    if not used:
        return {}, {}
    try:
        splits = make_splits(ready.recipe.data, ready.task, ready.recipe.seed, ready.registry, audited=False)
        divided = ready.without_unusable(splits)
    except DataError as error:
        if needed is not None:
            raise
        ready.listener.message(f"the run's own data cannot be read, so only --data is measured ({error})")
        return {}, {}
    by_name = divided.mapping()
    same = {
        name: by_name[name]
        for name in sorted(used & set(by_name))
        if content_of(by_name[name], ready.task) == recorded[name]
    }
    if needed is not None and needed not in same:
        raise DataError(
            f"the data files have changed since run {str(run.path)!r} was made, so its {needed} split may now contain "
            "training rows. Restore them, or name new data with --data FILE."
        )
    if changed := sorted(used - set(same)):
        ready.listener.message(
            f"the data files have changed since the run was made: its {' and '.join(changed)} rows are no longer the "
            "same, so nothing is measured on them or fitted to them"
        )
    return same, divided.trained_on
