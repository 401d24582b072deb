"""What is refused of the rows that a run measures, before a model loads."""

from __future__ import annotations

from typing import Any

from ftengine.api import overrides
from ftengine.errors import DataError
from ftengine.evaluation.plan import EvalSet
from ftengine.run.recipe import EvaluationSection


def check_rows(one: EvalSet, processor: Any) -> None:
    """Let evaluators refuse the rows that they will see, and the task those whose answers could not be measured.

    Raises:
        DataError: names the recipe's key and the row.
    """
    for evaluators, members in ((one.reading, one.members), (one.answering, one.answered)):
        for evaluator in (reader for reader in evaluators if overrides(reader, "check_row")):
            for row in map(int, one.split.index[members]):
                try:
                    evaluator.check_row(one.split.rows[row])
                except DataError as error:
                    raise _named(one, row, error) from None
    task = one.split.task
    for member in one.answered if one.answering and overrides(task, "check_generation") else ():
        try:
            task.check_generation(one.split.example(member), processor, one.options)
        except DataError as error:
            raise _named(one, int(one.split.index[member]), error) from None


def _named(one: EvalSet, row: int, error: DataError) -> DataError:
    kind = one.name.partition("-")[0]
    key = f"evaluation.{kind}" if kind in EvaluationSection.model_fields else "evaluate"
    return DataError(f"{key}: {one.split.rows.where(row)}: {error}")
