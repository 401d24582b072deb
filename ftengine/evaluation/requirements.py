"""What evaluators need of a task, and that no two of them report one metric."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ftengine.api import Evaluator, Generates, Task
from ftengine.errors import RecipeError


def check_evaluators(evaluators: Iterable[Evaluator], task: str, predicts: Collection[str]) -> None:
    """Refuse evaluators that read what a task's predictions do not hold (RecipeError); they need not be bound."""
    for evaluator in evaluators:
        if missing := evaluator.reads - set(predicts):
            raise RecipeError(
                f"evaluator {evaluator.name!r} reads {listed(missing)}, which task {task!r} does not predict "
                f"(it predicts {listed(predicts)}). Take it out of recipe key 'evaluate'."
            )


def check_metrics(evaluators: Iterable[Evaluator], known: Mapping[str, str] | None = None) -> None:
    """Refuse evaluators of which two report one metric, or one of those `known`, by evaluator (RecipeError)."""
    owners = dict(known or {})
    for evaluator in evaluators:
        for metric in evaluator.metrics:
            owner = owners.setdefault(metric, evaluator.name)
            if owner != evaluator.name:
                raise RecipeError(
                    f"evaluators {owner!r} and {evaluator.name!r} both report {metric!r}. Leave one of them out of "
                    "recipe key 'evaluate', or of --evaluators."
                )


def by_pass(evaluators: Sequence[Evaluator], task: Task) -> tuple[list[Evaluator], list[Evaluator]]:
    """Divide evaluators into those that read the task's predictions and those that read its free answers.

    Raises:
        RecipeError: one reads what neither has, or two report one metric.
    """
    answers = answer_keys(task)
    answering = [e for e in evaluators if not e.reads <= task.predicts and e.reads <= answers]
    reading = [e for e in evaluators if e not in answering]
    check_evaluators(reading, task.name, task.predicts)
    check_metrics(evaluators)
    return reading, answering


def answer_keys(task: Task) -> frozenset[str]:
    """Return the keys of a task's free answers; none where it writes none."""
    return task.answers if isinstance(task, Generates) else frozenset()


def listed(keys: Iterable[str]) -> str:
    """Return keys as a message names them."""
    return ", ".join(repr(key) for key in sorted(keys)) or "nothing"
