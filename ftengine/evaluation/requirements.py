"""What evaluators need of a task, and that no two of them report one metric."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ftengine.api import Evaluator, Generates, Task
from ftengine.errors import RecipeError


def check_evaluators(evaluators: Iterable[Evaluator], task: str, predicts: Collection[str] | None = None) -> None:
    """Refuse evaluators that a task's predictions do not serve, or that report one metric twice.

    Args:
        evaluators: those that are to run; they need not be bound.
        task: the task's name.
        predicts: the keys of its predictions; None checks the metrics alone.

    Raises:
        RecipeError: names the evaluator, what it reads and what there is.
    """
    owners: dict[str, str] = {}
    for evaluator in evaluators:
        missing = evaluator.reads - set(predicts) if predicts is not None else ()
        if missing:
            raise RecipeError(
                f"evaluator {evaluator.name!r} reads {_listed(missing)}, which task {task!r} does not predict "
                f"(it predicts {_listed(predicts or ())}). Take it out of recipe key 'evaluate'."
            )
        for metric in evaluator.higher_is_better:
            claim(owners, metric, evaluator)


def claim(owners: dict[str, str], metric: str, evaluator: Evaluator) -> None:
    """Note who reports a metric.

    Raises:
        RecipeError: another evaluator does so already.
    """
    owner = owners.setdefault(metric, evaluator.name)
    if owner != evaluator.name:
        raise RecipeError(
            f"evaluators {owner!r} and {evaluator.name!r} both report {metric!r}. "
            "Take one of them out of recipe key 'evaluate'."
        )


def by_pass(evaluators: Iterable[Evaluator], task: Task) -> tuple[list[Evaluator], list[Evaluator]]:
    """Divide evaluators into those that read the task's predictions and those that read its free answers.

    Raises:
        RecipeError: one reads what neither has, or two report one metric.
    """
    reading: list[Evaluator] = []
    answering: list[Evaluator] = []
    for evaluator in evaluators:
        predicted = evaluator.reads <= set(task.predicts) or not evaluator.reads <= answer_keys(task)
        (reading if predicted else answering).append(evaluator)
    check_evaluators(reading, task.name, task.predicts)
    check_evaluators(answering, task.name, answer_keys(task))
    check_evaluators([*reading, *answering], task.name)
    return reading, answering


def answer_keys(task: Task) -> frozenset[str]:
    """Return the keys of a task's free answers; none where it writes none."""
    return task.answers if isinstance(task, Generates) else frozenset()


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(repr(key) for key in sorted(keys)) or "nothing"
