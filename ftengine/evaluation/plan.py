"""All that is measured of a run's two models: sets of examples, by whom, and what evaluators need of a task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftengine.api import SAMPLES, CodeEvaluator, Evaluator, ModelEvaluator, Task, overrides
from ftengine.api.task_sorts import generated_keys, writes_completions
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import RecipeError


@dataclass(frozen=True)
class EvalSet:
    """Examples, and what is measured on them.

    Args:
        name: of its table of predictions; `title` is what a listener is told.
        reading: evaluators of the task's predictions.
        answering: evaluators of its generations.
        answered: the members that are answered freely with `options`, for evaluators or to be read; (a,).
        sampled: where they are answered several times as well, with which options, and "samples", how often.
        slices: columns that divide the examples; measured by the first evaluator alone.
    """

    name: str
    split: EncodedSplit
    reading: Sequence[Evaluator]
    answering: Sequence[Evaluator] = ()
    answered: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    options: Mapping[str, Any] = field(default_factory=dict)
    sampled: Mapping[str, Any] = field(default_factory=dict)
    slices: Sequence[str] = ()
    title: str = ""

    @property
    def evaluators(self) -> list[Evaluator]:
        return [*self.reading, *self.answering]

    @property
    def members(self) -> np.ndarray:
        """Positions in the split of what is measured, ascending."""
        return np.arange(len(self.split)) if self.reading or not len(self.answered) else self.answered


@dataclass(frozen=True)
class PlannedProbe:
    """A further look at both models: "leaks", "robustness", "forgetting", "memorisation" or "refusal".

    It has the name of the augmenter or the evaluator; `data` is where the examples are from, and `contrast` has others
    that these are set against, measured in the same way.
    """

    kind: str
    name: str
    data: str
    examples: EvalSet
    contrast: EvalSet | None = None


@dataclass(frozen=True)
class Benchmark:
    """Questions of an evaluator's own: `asker` calls them `data`, and `evaluator` measures the answers.

    `name` is that of their table.
    """

    name: str
    data: str
    asker: ModelEvaluator
    evaluator: Evaluator


@dataclass(frozen=True)
class EvalPlan:
    """What is measured, of base and tuned model alike.

    Args:
        split: the name of what is held out, or of the file in its place; None where nothing is.
        training: a sample of what the model is trained on.
        validation: what evaluators that fit, and the task, learn from; None where there is nothing left.
        small_slice: examples below which a slice is called small.
        resamples, seed: of the bootstrap.
        to_read: a few held-out prompts that are answered for people to read; it has the name of `held_out`, and with
            it one table, where evaluators ask for those answers anyway.
        writes: whether the task's models write text, measured and shown or not.
        benchmarks: what evaluators ask beside the recipe's data.
    """

    split: str | None
    held_out: EvalSet | None = None
    training: EvalSet | None = None
    probes: Sequence[PlannedProbe] = ()
    validation: EvalSet | None = None
    small_slice: int = 30
    resamples: int = 1000
    seed: int = 0
    to_read: EvalSet | None = None
    writes: bool = False
    benchmarks: Sequence[Benchmark] = ()

    @property
    def general(self) -> EncodedSplit | None:
        """The general examples that forgetting is measured on."""
        return next((probe.examples.split for probe in self.probes if probe.kind == "forgetting"), None)

    def sets(self) -> list[EvalSet]:
        """Return all sets in the order in which they are measured, that to fit on first."""
        probes = [eval_set for probe in self.probes for eval_set in (probe.contrast, probe.examples)]
        shared = self.to_read is not None and self.held_out is not None and self.to_read.name == self.held_out.name
        every = [self.validation, self.held_out, None if shared else self.to_read, self.training, *probes]
        return [eval_set for eval_set in every if eval_set is not None]

    def start_evaluators(self) -> None:
        """Let evaluators begin what they need to measure (RecipeError)."""
        for evaluator in {id(item): item for some in self.sets() for item in some.evaluators}.values():
            if isinstance(evaluator, CodeEvaluator):
                evaluator.start()

    def encoded(self) -> list[EncodedSplit]:
        """Return the examples that a model reads as batches; those that are only answered are cut to fit."""
        return [eval_set.split for eval_set in self.sets() if eval_set.reading]


def read_columns(evaluators: Sequence[Evaluator]) -> list[str]:
    """Return the columns of the user's rows that evaluators read."""
    return sorted(frozenset().union(*(e.columns for e in evaluators)))


def check_evaluators(evaluators: Iterable[Evaluator], task: str, predicts: Collection[str]) -> None:
    """Refuse evaluators that read what a task's predictions do not hold (RecipeError); they need not be bound."""
    for evaluator in evaluators:
        if missing := evaluator.reads - set(predicts):
            raise RecipeError(
                f"evaluator {evaluator.name!r} reads {listed(missing)}, which task {task!r} does not predict "
                f"(it predicts {listed(predicts)}). Take it out of recipe key 'evaluate'."
            )


def check_metrics(evaluators: Iterable[Evaluator], reported: Mapping[str, str] | None = None) -> None:
    """Refuse evaluators of which two report one metric, or one of those `known`, by evaluator (RecipeError)."""
    owners = dict(reported or {})
    for evaluator in evaluators:
        for metric in evaluator.metrics:
            owner = owners.setdefault(metric, evaluator.name)
            if owner != evaluator.name:
                raise RecipeError(
                    f"evaluators {owner!r} and {evaluator.name!r} both report {metric!r}. Remove one of them from "
                    "recipe key 'evaluate', or of --evaluators."
                )


def by_pass(evaluators: Sequence[Evaluator], task: Task) -> tuple[list[Evaluator], list[Evaluator]]:
    """Divide evaluators into those that read the task's predictions and those that read its generations.

    One that reads what neither has, and two that report one metric, are refused (RecipeError).
    """
    answers = answer_keys(task)
    answering = [e for e in evaluators if not e.reads <= task.predicts and e.reads <= answers]
    reading = [e for e in evaluators if e not in answering]
    check_evaluators(reading, task.name, task.predicts)
    check_metrics(evaluators)
    return reading, answering


def calibrates(task: Task) -> bool:
    """Say whether a task fits something to predictions on validation, given its labels."""
    return task.predicts_probabilities and overrides(task, "calibrate")


def answer_keys(task: Task) -> frozenset[str]:
    """Return the keys of a task's generations, drawn ones among them; none where it writes none."""
    return generated_keys(task) | ({SAMPLES} if writes_completions(task) else frozenset())


def most_asked(requests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the most that is asked of each option."""
    options: dict[str, Any] = {}
    for request in requests:
        for name, value in request.items():
            options[name] = max(options.get(name, value), value)
    return options


def how_sampled(evaluators: Iterable[Evaluator], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return how several answers to a row are drawn: as evaluators ask, unless the recipe's `own` options say; {} for
    none.

    Raises:
        RecipeError: two ask for different answers, or an evaluator's options and the recipe's contradict each other.
    """
    asking = [evaluator for evaluator in evaluators if evaluator.sampling]
    if not asking:
        return {}
    first = asking[0]
    for evaluator in asking:
        for name, here in evaluator.sampling.items():
            there = first.sampling.get(name, here)
            if here != there and name not in own:
                raise RecipeError(
                    f"evaluators {first.name!r} and {evaluator.name!r} read the same drawn answers, but {name} is "
                    f"{there} of the first and {here} of the second. Give both the same value in recipe key 'evaluate'."
                )
            if own.get(name, here) != here and name in evaluator.config.model_fields_set:
                raise RecipeError(
                    f"evaluator {evaluator.name!r} draws answers with {name} {here}, and evaluation.generate says "
                    f"{own[name]}. Leave one of them out."
                )
    return {**first.sampling, **own}


def listed(keys: Iterable[str]) -> str:
    """Return keys as a message names them."""
    return ", ".join(repr(key) for key in sorted(keys)) or "nothing"
