"""What is refused of the rows that a run measures, before a model loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ftengine.api import GenerativeTask, overrides
from ftengine.errors import DataError, RefusedRows
from ftengine.evaluation.plan import EvalSet
from ftengine.run.recipe import EvaluationSection


def check_rows(one: EvalSet, processor: Any) -> None:
    """Let evaluators refuse the rows that they will see, and the task those whose answers could not be measured.

    Raises:
        DataError: names the recipe's key, the first row, and how many there are.
    """
    split, task = one.split, one.split.task
    for evaluators, members in ((one.reading, one.members), (one.answering, one.answered)):
        for evaluator in (reader for reader in evaluators if overrides(reader, "check_row")):
            _check(one, members, lambda member, it=evaluator: it.check_row(split.rows[int(split.index[member])]))  # type: ignore[misc]
    if one.answering and isinstance(task, GenerativeTask) and overrides(task, "check_generation"):
        part = split.rows.part
        _check(
            one,
            one.answered,
            lambda i: task.check_generation(split.example(i), processor, one.options, **part(int(split.index[i]))),
        )


def _check(one: EvalSet, members: Iterable[int], check: Callable[[int], None]) -> None:
    kind, refused = one.name.partition("-")[0], RefusedRows()
    key = f"evaluation.{kind}" if kind in EvaluationSection.model_fields else "evaluate"
    for member in members:
        try:
            check(member)
        except DataError as error:
            place = one.split.rows.where(int(one.split.index[member]))
            refused.add(place, f"{key}: {place}: {error}")
    if refused.count:
        raise refused.error()
