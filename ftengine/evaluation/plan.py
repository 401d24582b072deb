"""The evaluation plan of a run: sets of examples, their evaluators, and checks that evaluators suit the task."""

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
        name: of its table of predictions.
        title: what is appended to the phase's name for a listener.
        reading: evaluators of the task's predictions.
        answering: evaluators of its generations.
        answered: (a,) the members for which answers are generated with `options`, for evaluators or the report.
        sampled: options for drawing several answers, with their number, "samples"; {} to draw none.
        slices: columns that divide the examples into slices, which only the first evaluator measures.
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
        """Positions in the split of the measured examples, ascending."""
        return np.arange(len(self.split)) if self.reading or not len(self.answered) else self.answered


@dataclass(frozen=True)
class PlannedProbe:
    """A further test of both models: "leaks", "robustness", "ablation", "forgetting", "memorisation" or "refusal".

    `name` is that of the augmenter or the evaluator, `data` the source of the examples, and `contrast` a set that is
    measured in the same way, for comparison.
    """

    kind: str
    name: str
    data: str
    examples: EvalSet
    contrast: EvalSet | None = None


@dataclass(frozen=True)
class Benchmark:
    """An evaluator's own questions: `asker` asks them under the name `data`, and `evaluator` measures the answers.

    `name` is that of their table of predictions.
    """

    name: str
    data: str
    asker: ModelEvaluator
    evaluator: Evaluator


@dataclass(frozen=True)
class EvalPlan:
    """What is measured, for the base and the tuned model alike.

    Args:
        split: name of the held-out split, or "data" for a file; None if nothing is held out.
        training: a sample of the training rows.
        validation: the set on which the task and evaluators are fitted; None if there is none.
        small_slice: number of examples below which a slice counts as small.
        resamples, seed: of the bootstrap.
        to_read: a few held-out prompts whose answers the report shows; it shares the name and table of `held_out` if
            evaluators read the same answers.
        writes: whether the task's models write text, even if it is neither measured nor shown.
        benchmarks: evaluators' own questions.
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
        """Return all sets in the order in which they are measured, beginning with the one for fitting."""
        probes = [eval_set for probe in self.probes for eval_set in (probe.contrast, probe.examples)]
        shared = self.to_read is not None and self.held_out is not None and self.to_read.name == self.held_out.name
        every = [self.validation, self.held_out, None if shared else self.to_read, self.training, *probes]
        return [eval_set for eval_set in every if eval_set is not None]

    def start_evaluators(self) -> None:
        """Let evaluators start what they need to measure (`CodeEvaluator.start`; RecipeError)."""
        for evaluator in {id(item): item for some in self.sets() for item in some.evaluators}.values():
            if isinstance(evaluator, CodeEvaluator):
                evaluator.start()

    def encoded(self) -> list[EncodedSplit]:
        """Return the splits that a model reads in batches; prompts that are only answered are cut to fit."""
        return [eval_set.split for eval_set in self.sets() if eval_set.reading]


def read_columns(evaluators: Sequence[Evaluator]) -> list[str]:
    """Return the columns of the user's rows that evaluators read."""
    return sorted(frozenset().union(*(e.columns for e in evaluators)))


def check_evaluators(evaluators: Iterable[Evaluator], task: str, predicts: Collection[str]) -> None:
    """Raise RecipeError if evaluators read keys that the task does not predict; they need not be bound."""
    for evaluator in evaluators:
        if missing := evaluator.reads - set(predicts):
            raise RecipeError(
                f"evaluator {evaluator.name!r} reads {listed(missing)}, which task {task!r} does not predict "
                f"(it predicts {listed(predicts)}). Take it out of recipe key 'evaluate'."
            )


def check_metrics(evaluators: Iterable[Evaluator], reported: Mapping[str, str] | None = None) -> None:
    """Raise RecipeError if two evaluators report the same metric; `reported` maps earlier metrics to evaluators."""
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

    Raises RecipeError if an evaluator reads keys of neither, or two report the same metric.
    """
    answers = answer_keys(task)
    answering = [e for e in evaluators if not e.reads <= task.predicts and e.reads <= answers]
    reading = [e for e in evaluators if e not in answering]
    check_evaluators(reading, task.name, task.predicts)
    check_metrics(evaluators)
    return reading, answering


def calibrates(task: Task) -> bool:
    """Return whether a task, given its labels, is calibrated on predictions of the validation split."""
    return task.predicts_probabilities and overrides(task, "calibrate")


def answer_keys(task: Task) -> frozenset[str]:
    """Return the keys of a task's generations, including drawn ones; empty if it writes none."""
    return generated_keys(task) | ({SAMPLES} if writes_completions(task) else frozenset())


def most_asked(requests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the largest value that evaluators request for each option."""
    options: dict[str, Any] = {}
    for request in requests:
        for name, value in request.items():
            options[name] = max(options.get(name, value), value)
    return options


def how_sampled(evaluators: Iterable[Evaluator], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for drawing several answers to a row; {} for none.

    Evaluators request them; the recipe's `own` options take precedence.

    Raises:
        RecipeError: the options of two evaluators, or of an evaluator and the recipe, contradict each other.
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
