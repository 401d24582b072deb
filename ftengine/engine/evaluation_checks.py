"""Checks of the rows that a run measures, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ftengine.api import GenerativeTask, overrides
from ftengine.errors import DataError, RefusedRows
from ftengine.evaluation.plan import EvalSet
from ftengine.run.recipe import EvaluationSection


def check_rows(eval_set: EvalSet, processor: Any) -> None:
    """Let evaluators and the task check the rows of a set before a model is loaded.

    Raises:
        DataError: rows are unsuitable; the message names the recipe's key, the first row and their number.
    """
    split, task = eval_set.split, eval_set.split.task
    for evaluators, members in ((eval_set.reading, eval_set.members), (eval_set.answering, eval_set.answered)):
        for evaluator in (reader for reader in evaluators if overrides(reader, "check_row")):
            _check(eval_set, members, lambda member, it=evaluator: it.check_row(split.rows[int(split.index[member])]))  # type: ignore[misc]
    if eval_set.answering and isinstance(task, GenerativeTask) and overrides(task, "check_generation"):
        part = split.rows.part
        _check(
            eval_set,
            eval_set.answered,
            lambda i: task.check_generation(split.example(i), processor, eval_set.options, **part(int(split.index[i]))),
        )


def _check(eval_set: EvalSet, members: Iterable[int], check: Callable[[int], None]) -> None:
    kind, refused = eval_set.name.partition("-")[0], RefusedRows()
    key = f"evaluation.{kind}" if kind in EvaluationSection.model_fields else "evaluate"
    for member in members:
        try:
            check(member)
        except DataError as error:
            place = eval_set.split.rows.where(int(eval_set.split.index[member]))
            refused.add(place, f"{key}: {place}: {error}")
    if refused.count:
        raise refused.error()
