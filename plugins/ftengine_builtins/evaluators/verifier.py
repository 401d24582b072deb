"""Answers judged by a Python function: the share that passes, and pass@k."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from math import comb
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from ftengine import api
from ftengine.api import CodeEvaluator, ExampleScores, Metric
from ftengine.errors import RecipeError
from ftengine_builtins.answer_function import AnswerFunction
from ftengine_builtins.evaluators.base import WeightedEvaluator, higher, share
from ftengine_builtins.evaluators.weighted import mean_of_finite, means, numbers, trials_of_means
from ftengine_builtins.tasks.prompt_rows import own_answer

FAILED, PASSED, ERROR, TIMEOUT = range(4)
"""What came of an answer."""


class VerifierConfig(api.Config):
    """Options of evaluator verifier."""

    function: str | None = Field(
        None,
        pattern=r".+\.py:[A-Za-z_]\w*$",
        description="FILE.py:FUNCTION of yours, called with an answer and the row's columns that its further "
        "parameters name; it runs with your rights",
    )
    passes_at: float | None = Field(
        None, description="score from which an answer passes; null: the function returns True or False"
    )
    samples: int = Field(1, ge=1, description="answers to each prompt")
    k: list[int] = Field([1], min_length=1, description="pass@k is measured for these k, at most `samples`")
    temperature: float | None = Field(
        None, ge=0, description="sampling temperature; null: 0 (the likeliest answer) for one sample, 1 for several"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that hold this probability")
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    timeout: float = Field(5.0, gt=0, description="seconds that the function may take for an answer")

    @model_validator(mode="after")
    def _enough(self) -> Any:
        if not 1 <= min(self.k) <= max(self.k) <= self.samples:
            raise ValueError(f"k must be from 1 to samples, which is {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{self.samples} samples of temperature 0 would be equal; set it above 0")
        return self


def declared(k: Collection[int], samples: int) -> dict[str, Metric]:
    """Declare pass@k for this number of answers to a prompt."""
    return {
        f"pass_at_{count}": (share if count == samples else higher)(
            f"pass@{count}",
            f"Share of prompts of which one of {count} answers passes." if count > 1 else "Share of answers that pass.",
            primary=True,
        )
        for count in sorted(set(k))
    }


class Verifier(WeightedEvaluator, CodeEvaluator):
    """Share of answers that a Python function passes, and of prompts for which at least one of k answers passes.

    With n answers to a prompt of which c pass, pass@k is 1 − C(n−c, k) / C(n, k), the unbiased estimate, averaged over
    prompts. The function runs in a process of its own; an answer for which it raises, or takes longer than `timeout`,
    does not pass and is counted. A plugin derives from this class and names a function of its own.
    """

    name = "verifier"
    paper = "Chen et al. 2021, arXiv:2107.03374"
    Config = VerifierConfig
    metrics = declared([1], 1)
    own: ClassVar[str] = ""
    """MODULE:FUNCTION of a plugin's own, which is called where the recipe names none."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        asked = self.config
        drawn = asked.temperature if asked.temperature is not None else float(asked.samples > 1)
        self.reads = frozenset({"samples"} if drawn else {"completion"})
        if drawn:
            self.sampling = {
                "samples": asked.samples,
                "temperature": drawn,
                "top_p": asked.top_p,
                "max_new_tokens": asked.max_new_tokens,
            }
        else:
            self.generation = {"max_new_tokens": asked.max_new_tokens}
        self.metrics = declared(asked.k, asked.samples)
        if asked.passes_at is not None:
            self.metrics["mean_score"] = higher("mean score", "Mean of what the function gives an answer.")
        self.first_error = ""
        """The first that the function raised."""

    @cached_property
    def _function(self) -> AnswerFunction:
        """The function that scores."""
        return AnswerFunction(self.config.function or self.own, self.config.timeout, f"evaluator {self.name!r}")

    def set_labels(self, task, labels):
        """Refuse to run without a function."""
        if not self._named:
            raise RecipeError(f"evaluator {self.name!r} needs a function: set its option function to FILE.py:FUNCTION.")

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(name for names in self._function.columns for name in names) if self._named else frozenset()

    @property
    def _named(self) -> bool:
        return bool(self.config.function or self.own)

    def runs_code(self) -> str | None:
        return f"the function {self.config.function}" if self.config.function else None

    def code_files(self) -> list[Path]:
        return self._function.code_files() if self._named else []

    def check_row(self, row: Any) -> None:
        """Refuse a row without a column that the function requires; its file is read, and nothing executed."""
        self._function.check_row({**row, **own_answer(row)} if "completion" in self._function.columns[0] else row)

    def start(self) -> None:
        """Start the function's process (RecipeError: its file cannot be imported)."""
        self._function.start()

    def score_answers(self, answers: list[str], row: Any) -> tuple[list[float], list[int]]:
        """Return the function's score of each answer, nan without one, and the outcome.

        `row` has the columns that it may read; `completion` is the row's own answer as text (`own_answer`).
        """
        scores, outcomes = [], []
        for answer in answers:
            response = self._function.score(answer, row)
            score, least = response.get("score", np.nan), self.config.passes_at
            if least is None and score not in (0, 1) and "score" in response:
                response = {"error": f"it returned {score:g}, and is to return True or False while passes_at is null"}
                score = np.nan
            if "error" in response:
                self.first_error = self.first_error or response["error"]
                outcome = ERROR
            else:
                outcome = TIMEOUT if not response else PASSED if score >= (1 if least is None else least) else FAILED
            scores.append(score)
            outcomes.append(outcome)
        return scores, outcomes

    def keep(self, prediction):
        """Return each answer's score and outcome: 0 it fails, 1 passes, 2 an error, 3 a timeout."""
        answers = prediction["samples"] if "samples" in self.reads else [prediction["completion"]]
        wanted = {"completion": prediction.get("reference")}  # the row's own, as the function knows it
        scores, outcomes = self.score_answers(list(answers), {**prediction, **wanted})
        return {"scores": scores, "outcomes": outcomes}

    def by_metric(self, rows: Any) -> dict[str, np.ndarray]:
        """Return (n,) by metric."""
        outcomes = numbers(rows["outcomes"])
        passed, n = (outcomes == PASSED).sum(axis=1), outcomes.shape[1]
        values = {f"pass_at_{k}": pass_at_k(n, k)[passed] for k in sorted(set(self.config.k))}
        return values | (
            {"mean_score": mean_of_finite(numbers(rows["scores"]))} if "mean_score" in self.metrics else {}
        )

    def score_resamples(self, rows, weights):
        return dict(zip(self.metrics, means(weights, *self.by_metric(rows).values()).T, strict=True))

    def trials(self, rows):
        return trials_of_means(self.by_metric(rows), self.metrics)

    def score_examples(self, rows):
        """Score the share of answers that pass; right if all do, wrong if none does."""
        passing = (numbers(rows["outcomes"]) == PASSED).mean(axis=1)
        return ExampleScores(passing, np.where((passing == 0) | (passing == 1), passing, np.nan))

    def details(self, rows, estimate):
        """Yield the number of answers without a score, and why."""
        outcomes = numbers(rows["outcomes"])
        yield "answers", int(outcomes.size)
        yield "errors", int((outcomes == ERROR).sum())
        yield "timeouts", int((outcomes == TIMEOUT).sum())
        if (outcomes == TIMEOUT).any():
            yield "timeout_seconds", self.config.timeout
        if self.first_error and (outcomes == ERROR).any():
            yield "error", self.first_error


def pass_at_k(n: int, k: int) -> np.ndarray:
    """Return (n + 1,) estimates of pass@k, by the number of passing answers among n."""
    return np.array([1 - comb(n - c, k) / comb(n, k) for c in range(n + 1)])
