"""Checks of evaluators that give the models their own questions (`ask_models`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ftengine.api import Evaluator, LoadedModel, ModelEvaluator, Prediction, Task
from ftengine.equivalence import differing
from ftengine.model.modes import hooks
from ftengine.testing.checks import Checks, require_passed, results_of
from ftengine.testing.evaluators import EvaluatorChecks
from ftengine.testing.values import copies, equal, explained, in_bfloat16

LEAST = 4
"""Fewest answers for meaningful checks of an evaluator."""


@dataclass
class AskingChecks(Checks):
    """Checks of an evaluator with its own questions, on one small model.

    Args:
        make: returns a fresh evaluator.
        task: the model's task, with labels.
        load: returns the same model each time, in evaluation mode.
    """

    make: Callable[[], ModelEvaluator]
    task: Task
    load: Callable[[], LoadedModel]

    def every_benchmark_is_answered(self) -> None:
        benchmarks, answers = self._answers(self.load())
        named = isinstance(benchmarks, Mapping) and len(benchmarks) > 0
        assert named, f"benchmarks returned {benchmarks!r}; return a mapping from names to evaluators"
        other = [
            f"{name!r} {evaluator!r}" for name, evaluator in benchmarks.items() if not isinstance(evaluator, Evaluator)
        ]
        assert not other, f"benchmarks must map each name to an Evaluator; it does not for {', '.join(other)}"
        missing = sorted(benchmarks.keys() - answers.keys())
        assert not missing, f"ask returns no answers to {missing[0]!r}, which benchmarks names"
        for name in benchmarks:
            complete = bool(answers[name]) and all(isinstance(answer, Mapping) for answer in answers[name])
            assert complete, f"ask must return one mapping or more for {name!r}, one for each example"

    def the_same_examples_are_asked_again(self) -> None:
        first, again = (self._answers(self.load())[1] for _ in "ab")
        assert equal(dict(first), dict(again)), (
            "a second call with the same model gives other answers. Base and tuned model must get the same examples "
            "in the same order: draw with your own seed or with torch's global generator"
        )

    def it_asks_in_bfloat16(self) -> None:
        loaded = self.load()
        advice = "numpy has no bfloat16: convert outputs to float32 first"
        with in_bfloat16(loaded.module), explained("ask_models fails in bfloat16, under autocast", advice):
            self._answers(loaded)

    def asking_leaves_the_model_as_it_is(self) -> None:
        loaded = self.load()
        before, parts = copies(loaded.module.state_dict()), list(loaded.module.modules())
        modes, hooked = [part.training for part in parts], sum(map(hooks, parts))
        self._answers(loaded)
        changed = differing(before, loaded.module.state_dict())
        assert not changed, f"ask_models changes the values of {changed[0]}"
        assert [part.training for part in parts] == modes, "ask_models does not restore the model's evaluation mode"
        assert sum(map(hooks, parts)) == hooked, "ask_models leaves hooks on the model: remove them"

    def its_benchmarks_are_sound_evaluators(self) -> None:
        benchmarks, answers_by_name = self._answers(self.load())
        for name, evaluator in benchmarks.items():
            answers = [
                {key: value for key, value in answer.items() if key != "group"} for answer in answers_by_name[name]
            ]
            answers *= -(-LEAST // len(answers))  # answers are repeated if a benchmark has few questions
            missing = sorted(evaluator.reads - answers[0].keys())
            assert not missing, f"the evaluator of {name!r} reads {missing[0]!r}, which its answers do not have"
            require_passed(results_of(EvaluatorChecks(partial(copy.deepcopy, evaluator), answers, None, on=name), None))

    def _answers(self, loaded: LoadedModel) -> tuple[Mapping[str, Evaluator], Mapping[str, Sequence[Prediction]]]:
        """Return the benchmarks and a model's answers, called in the engine's order."""
        evaluator = self.make()
        evaluator.set_labels(self.task.name, self.task.labels)

        benchmarks = evaluator.benchmarks(self.task)
        torch.manual_seed(0)
        with torch.no_grad():
            return benchmarks, evaluator.ask_models(loaded)
