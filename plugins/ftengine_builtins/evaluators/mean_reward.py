"""The rewards of answers to held-out prompts."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ftengine import api
from ftengine.api import CodeEvaluator, ExampleScores
from ftengine.errors import RecipeError
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher
from ftengine_builtins.evaluators.weighted import means, trials_of_means
from ftengine_builtins.rewards import RewardConfig, Rewards
from ftengine_builtins.tasks.exchanges import TURNS
from ftengine_builtins.tasks.prompt_rows import own_answer


class MeanReward(WeightedEvaluator, CodeEvaluator):
    """Mean reward of greedy answers, by the reward functions of the task.

    An answer for which a function fails has no reward, and is counted separately. Training maximises these rewards, so
    use a verifier or another test to see whether answers became better.
    """

    name = "mean-reward"

    class Config(api.Config):
        rewards: list[RewardConfig] = Field([], description="functions that score answers; task grpo gives its own")
        max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
        timeout: float = Field(5.0, gt=0, description="seconds that a function may take for an answer")

    reads = frozenset({"completion"})
    metrics = {"mean_reward": higher("mean reward", "Mean reward of an answer.", primary=True)}  # noqa: RUF012

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.generation = {"max_new_tokens": self.config.max_new_tokens}
        if len(names := self._rewards.names) > 1:
            each = {f"reward_{name}": higher(f"reward {name}", f"Mean of the reward {name}.") for name in names}
            self.metrics = {**self.metrics, **each}
        if TURNS in self._rewards.columns():
            self.reads = self.reads | {TURNS}
        self.first_error = ""

    @cached_property
    def _rewards(self) -> Rewards:
        return Rewards(self.config.rewards, self.config.timeout, f"evaluator {self.name!r}")

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(self._rewards.columns()) - {TURNS}

    def set_labels(self, task, labels):
        """Refuse a task without reward functions."""
        if not self.config.rewards:
            raise RecipeError(f"evaluator {self.name!r} needs rewards: set its option `rewards` like task grpo's.")

    def runs_code(self) -> str | None:
        return self._rewards.runs_code()

    def code_files(self) -> list[Path]:
        return self._rewards.code_files()

    def check_row(self, row: Any) -> None:
        """Refuse a row without a column that a function requires; nothing is executed."""
        self._rewards.check_row({**self._rewards.arguments(row, own_answer(row)), TURNS: []})

    def start(self) -> None:
        """Start the functions' processes (RecipeError: a file cannot be imported)."""
        self._rewards.start()

    def keep(self, prediction):
        """Return the sum of an answer's rewards and, if there are several, each of them; nan if a function failed."""
        own = {} if prediction.get("reference") is None else {"completion": prediction["reference"]}
        row = {key: value for key, value in prediction.items() if key != "completion"}
        scored = self._rewards.score(prediction["completion"], self._rewards.arguments(row, own))
        self.first_error = self.first_error or scored.error
        values = [scored.total, *(scored.rewards if len(self._rewards.names) > 1 else ())]
        return dict(zip(self.metrics, [np.nan if x is None else x for x in values], strict=True))

    def score_resamples(self, rows, weights):
        return dict(zip(self.metrics, means(weights, *(rows[name] for name in self.metrics)).T, strict=True))

    def trials(self, rows):
        return trials_of_means(rows, self.metrics)

    def score_examples(self, rows):
        """Score the reward."""
        return ExampleScores(rows["mean_reward"], np.full(len(rows["mean_reward"]), np.nan))

    def details(self, rows, estimate):
        """Yield how many answers have no reward, and why."""
        yield "failed", int(np.isnan(np.asarray(rows["mean_reward"], dtype=float)).sum())
        if self.first_error:
            yield "error", self.first_error
