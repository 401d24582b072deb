"""Figures from stored tables of predictions: of further evaluators, and of several runs together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ftengine.api import Evaluator, ModelEvaluator, Task
from ftengine.errors import InputError
from ftengine.evaluation.figures import declarations
from ftengine.evaluation.plan import answer_keys, check_metrics, listed, read_columns
from ftengine.evaluation.results import Measured, bind, compared, fit
from ftengine.evaluation.table import FOLDER, Predictions
from ftengine.evaluation.weights import Weights
from ftengine.run.directory import RunDirectory
from ftengine.run.evaluation_result import Details, Displays, EvaluationResult, MeasuredMetric
from ftengine.run.recipe import Recipe


def stored(run: RunDirectory, name: str, side: str) -> Predictions:
    """Read the stored predictions of a run's model ("base" or "tuned") for a set (RunError: missing or damaged)."""
    return Predictions.read(run.path / FOLDER / f"{name}-{side}.parquet")


def validation_of(run: RunDirectory, held_out: str, side: str) -> Predictions | None:
    """Read the validation predictions for fitting; None if the run has none, or its figures are computed on them."""
    exists = (run.path / FOLDER / f"validation-{side}.parquet").is_file()
    return stored(run, "validation", side) if exists and held_out != "validation" else None


def add_evaluators(run: RunDirectory, evaluators: Sequence[Evaluator], task: Task, recipe: Recipe) -> EvaluationResult:
    """Return evaluation.json's contents with the figures of further, newly built evaluators; nothing is written.

    An evaluator that measured before replaces its figures. The task must have its labels. Raises InputError if the run
    lacks predictions or a key that an evaluator reads, or if two evaluators report the same metric.
    """
    recorded = EvaluationResult.read(run)
    if (split := recorded.split) is None:
        raise InputError(f"run {str(run.path)!r} has no held-out split, so it kept no predictions to measure.")
    tables = {side: stored(run, split, side) for side in ("base", "tuned")}
    _check(evaluators, recorded.metrics, tables["tuned"].keys, run, task)
    weights = tables["tuned"].weights(recipe.seed, recipe.evaluation.resamples)
    sides = {
        side: measure_again(table, evaluators, task, weights, validation_of(run, split, side), keep=True)
        for side, table in tables.items()
    }
    comparison = compared(**sides)
    details, displays = {}, {}
    for side, measured in sides.items():
        details[side] = getattr(recorded.details, side) | measured.details
        new = {display.title for display in measured.displays}
        displays[side] = (
            *(old for old in getattr(recorded.displays, side) if old.title not in new),
            *measured.displays,
        )
    return recorded.model_copy(
        update={
            "metrics": recorded.metrics | declarations(measured.figures for measured in sides.values()),
            **{key: getattr(recorded, key) | comparison[key] for key in ("base", "tuned", "difference")},
            "details": Details(**details),
            "displays": Displays(**displays),
        }
    )


def measure_again(
    table: Predictions,
    evaluators: Sequence[Evaluator],
    task: Task,
    weights: Weights,
    validation: Predictions | None = None,
    *,
    keep: bool = False,
) -> Measured:
    """Measure one model with newly built evaluators, from a run's stored table.

    Args:
        task: the task with its labels.
        weights: of the table's examples.
        validation: predictions for fitting evaluators; None if there are none.
        keep: whether to compute the columns that evaluators keep, since the tables lack them.
    """
    bind(evaluators, task.name, task.labels)
    fit(evaluators, validation, keep=keep)
    measured = Measured(table)
    for evaluator in evaluators:
        measured.add(evaluator, weights, answering=not evaluator.reads <= task.predicts, keep=keep)
    return measured


def _check(
    evaluators: Sequence[Evaluator],
    metrics: Mapping[str, MeasuredMetric],
    keys: Collection[str],
    run: RunDirectory,
    task: Task,
) -> None:
    """Raise InputError if evaluators read keys that were not stored, or report a metric of another evaluator."""
    available = task.predicts | answer_keys(task)
    check_metrics(evaluators, {name: metric.evaluator for name, metric in metrics.items()})
    for evaluator in evaluators:
        if isinstance(evaluator, ModelEvaluator) and not evaluator.metrics:
            raise InputError(
                f"evaluator {evaluator.name!r} queries the models itself, so it cannot be computed from saved "
                "predictions. Add it to recipe key 'evaluate' and train again."
            )
        if not evaluator.reads <= available:
            raise InputError(
                f"evaluator {evaluator.name!r} reads {listed(evaluator.reads - available)}, which task {task.name!r} "
                f"does not give (it gives {listed(available)}), so it cannot measure run {str(run.path)!r}."
            )
        if missing := {*evaluator.reads, *read_columns([evaluator])} - set(keys):
            raise InputError(
                f"evaluator {evaluator.name!r} reads {listed(missing)}, which run {str(run.path)!r} did not keep (it "
                f"kept {listed(keys)}). Train again with it in recipe key 'evaluate'."
            )


def same_examples(tables: Sequence[Predictions]) -> bool:
    """Return whether the tables of several runs hold the same rows of a split in the same order."""
    return all(np.array_equal(table.columns["row"], tables[0].columns["row"]) for table in tables)
