"""Checks of evaluators that ask the models questions of their own (`ask_models`)."""

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
"""Answers without which an evaluator's own checks say little."""


@dataclass
class AskingChecks(Checks):
    """Checks of an evaluator that asks one small model.

    Args:
        make: returns a fresh evaluator.
        task: of the model, its labels known.
        load: returns the same model each time, in evaluation mode.
    """

    make: Callable[[], ModelEvaluator]
    task: Task
    load: Callable[[], LoadedModel]

    def every_benchmark_is_answered(self) -> None:
        benchmarks, said = self._asked(self.load())
        named = isinstance(benchmarks, Mapping) and len(benchmarks) > 0
        assert named, f"benchmarks returned {benchmarks!r}: an evaluator by name for each of them"
        other = [f"{name!r} {one!r}" for name, one in benchmarks.items() if not isinstance(one, Evaluator)]
        assert not other, f"benchmarks must give an Evaluator for each name; it gives for {', '.join(other)}"
        missing = sorted(benchmarks.keys() - said.keys())
        assert not missing, f"ask returns no answers to {missing[0]!r}, which benchmarks names"
        for name in benchmarks:
            whole = bool(said[name]) and all(isinstance(answer, Mapping) for answer in said[name])
            assert whole, f"ask must return one mapping or more for {name!r}, one for each example"

    def the_same_examples_are_asked_again(self) -> None:
        first, again = (self._asked(self.load())[1] for _ in "ab")
        assert equal(dict(first), dict(again)), (
            "the same model asked twice gives other answers: base and tuned model are asked the same examples in the "
            "same order, so draw with a seed of your own, or with torch's global generator"
        )

    def it_asks_in_bfloat16(self) -> None:
        loaded = self.load()
        advice = "numpy has no bfloat16: take outputs to float32 first"
        with in_bfloat16(loaded.module), explained("ask_models fails in bfloat16, under autocast", advice):
            self._asked(loaded)

    def asking_leaves_the_model_as_it_is(self) -> None:
        loaded = self.load()
        before, parts = copies(loaded.module.state_dict()), list(loaded.module.modules())
        modes, hooked = [part.training for part in parts], sum(map(hooks, parts))
        self._asked(loaded)
        changed = differing(before, loaded.module.state_dict())
        assert not changed, f"ask_models changes the values of {changed[0]}"
        assert [part.training for part in parts] == modes, "ask_models leaves the model in another mode than evaluation"
        assert sum(map(hooks, parts)) == hooked, "ask_models leaves hooks on the model: remove them"

    def its_benchmarks_are_sound_evaluators(self) -> None:
        benchmarks, said = self._asked(self.load())
        for name, evaluator in benchmarks.items():
            answers = [{key: value for key, value in one.items() if key != "group"} for one in said[name]]
            answers *= -(-LEAST // len(answers))  # a benchmark of few questions is measured as one of many
            missing = sorted(evaluator.reads - answers[0].keys())
            assert not missing, f"the evaluator of {name!r} reads {missing[0]!r}, which its answers do not have"
            require_passed(results_of(EvaluatorChecks(partial(copy.deepcopy, evaluator), answers, None, on=name), None))

    def _asked(self, loaded: LoadedModel) -> tuple[Mapping[str, Evaluator], Mapping[str, Sequence[Prediction]]]:
        """Ask a model as the engine does: what is asked is known first."""
        evaluator = self.make()
        evaluator.set_labels(self.task.name, self.task.labels)

        benchmarks = evaluator.benchmarks(self.task)
        torch.manual_seed(0)
        with torch.no_grad():
            return benchmarks, evaluator.ask_models(loaded)
