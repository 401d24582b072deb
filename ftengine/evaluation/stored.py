"""Figures from the tables that runs kept: of further evaluators, and of several runs together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ftengine.api import Evaluator, Task
from ftengine.errors import InputError
from ftengine.evaluation.figures import Figure, declarations
from ftengine.evaluation.plan import read_columns
from ftengine.evaluation.requirements import check_metrics, listed
from ftengine.evaluation.results import Measured, bind, compared, fit
from ftengine.evaluation.table import FOLDER, Predictions
from ftengine.evaluation.weights import Weights
from ftengine.run.directory import RunDirectory
from ftengine.run.evaluation_result import EvaluationResult
from ftengine.run.recipe import Recipe


def stored(run: RunDirectory, name: str, side: str) -> Predictions:
    """Read what a run's model said of a set.

    Args:
        run: a finished run.
        name: of the set: "test", "validation", ….
        side: "base" or "tuned".

    Raises:
        RunError: the table is missing or damaged.
    """
    return Predictions.read(run.path / FOLDER / f"{name}-{side}.parquet")


def validation_of(run: RunDirectory, held_out: str, side: str) -> Predictions | None:
    """Read what evaluators fit on; None where the run kept no such table, or its figures are made on it."""
    kept = (run.path / FOLDER / f"validation-{side}.parquet").is_file()
    return stored(run, "validation", side) if kept and held_out != "validation" else None


def add_evaluators(run: RunDirectory, evaluators: Sequence[Evaluator], task: Task, recipe: Recipe) -> EvaluationResult:
    """Return what evaluation.json would hold with the figures of further evaluators; nothing is written.

    Args:
        run: a finished run.
        evaluators: just built; one that measured before measures anew.
        task: knows its labels.
        recipe: of the run.

    Raises:
        InputError: the run kept no predictions, or not the keys that an evaluator reads, or two report one metric.
        RecipeError: an evaluator does not suit the task.
    """
    report = EvaluationResult.read(run).to_json()
    if report["split"] is None:
        raise InputError(f"run {str(run.path)!r} has no held-out split, so it kept no predictions to measure.")
    tables = {side: stored(run, report["split"], side) for side in ("base", "tuned")}
    _check(evaluators, report["metrics"], tables["tuned"].keys, run)
    bind(evaluators, task.name, task.labels)
    weights = Weights(tables["tuned"].groups, recipe.seed, recipe.evaluation.resamples)
    sides = []
    for side, predictions in tables.items():
        fit(evaluators, validation_of(run, report["split"], side), keep=True)
        sides.append(Measured(predictions))
        for evaluator in evaluators:
            sides[-1].add(evaluator, weights, answering=not evaluator.reads <= task.predicts, keep=True)
    report["metrics"] |= declarations(one.figures for one in sides)
    found = compared(*sides)
    for key in ("base", "tuned", "difference"):
        report[key] |= found[key]
    for side in ("base", "tuned"):
        report["details"][side] |= found["details"][side]
        new = {display["title"] for display in found["displays"][side]}
        old = [display for display in report["displays"][side] if display["title"] not in new]
        report["displays"][side] = [*old, *found["displays"][side]]
    return EvaluationResult.model_validate(report)


def _check(
    evaluators: Sequence[Evaluator], metrics: Mapping[str, Any], keys: Collection[str], run: RunDirectory
) -> None:
    """Refuse evaluators that read what was not kept, or that report what another one reported."""
    check_metrics(evaluators)
    for evaluator in evaluators:
        if missing := {*evaluator.reads, *read_columns([evaluator])} - set(keys):
            raise InputError(
                f"evaluator {evaluator.name!r} reads {listed(missing)}, which run {str(run.path)!r} did not keep (it "
                f"kept {listed(keys)}). Train with it in recipe key 'evaluate', which has both models asked for it."
            )
        for metric in evaluator.metrics:
            owner = metrics.get(metric, {}).get("evaluator", evaluator.name)
            if owner != evaluator.name:
                raise InputError(f"evaluators {owner!r} and {evaluator.name!r} both report {metric!r}; leave one out.")


def figures_of(
    predictions: Predictions, evaluators: Sequence[Evaluator], task: Task, weights: Weights
) -> dict[str, Figure]:
    """Return the figures of evaluators that are bound, and fitted where they fit, and that measured these examples."""
    measured = Measured(predictions)
    for evaluator in evaluators:
        measured.add(evaluator, weights, answering=not evaluator.reads <= task.predicts, told=False)
    return measured.figures


def same_examples(tables: Sequence[Predictions]) -> bool:
    """Say whether tables of several runs on one split are of the same rows, in the same order."""
    return all(np.array_equal(table.columns["row"], tables[0].columns["row"]) for table in tables)
