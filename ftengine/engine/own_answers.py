"""Estimating how far a tuned model moved from its starting point, on answers that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ftengine.api import Estimate
from ftengine.api.task_sorts import gives_prompts
from ftengine.chat import stop_tokens
from ftengine.data.row_hashes import identities
from ftengine.data.split_columns import numbers_of
from ftengine.engine.evaluate import held_out_rows, reference_model
from ftengine.engine.finished import Run
from ftengine.engine.informative_rows import prompts_of
from ftengine.engine.proof import exact_run
from ftengine.errors import InputError
from ftengine.evaluation.intervals import percentile_interval
from ftengine.evaluation.questions import questions, scored
from ftengine.evaluation.weights import Weights
from ftengine.generation import log_probabilities, sampling

RESAMPLES = 1000


@dataclass(frozen=True)
class OwnAnswers:
    """KL divergence of a tuned model from the model that training began with, on answers of the tuned one.

    Args:
        split: the split of the prompts; each has one answer.
        tokens: number of tokens of all answers, including end tokens.
        cut: number of answers that reached the limit, `longest`.
        started_from: the trained part that training began with; "" if it began with the base.
        kl: in nats per answer, with its interval over prompts, or over groups if the recipe names groups.
        kl_per_token: in nats per token.
        log_ratio: the plain estimate of `kl`, the mean of log p − log p_began; it varies more and may be negative.
    """

    split: str
    prompts: int
    tokens: int
    cut: int
    longest: int
    started_from: str
    kl: Estimate
    kl_per_token: Estimate
    log_ratio: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def own_answers(run: Run, *, rows: int, data: str | None = None) -> OwnAnswers:
    """Draw the tuned model's answers to held-out prompts; score them with it and with the model before training.

    Answers are drawn at temperature 1 with the run's seed. Both models compute in float32.

    Raises:
        InputError: the run's task has no prompts, or there are too few.
        RunError: the trained part that training began with is gone.
    """
    ready = run.ready()
    if not gives_prompts(ready.task):
        raise InputError(f"task {ready.task.name!r} writes no answers, so none can be drawn.")
    split, held = held_out_rows(ready, run.directory, data)
    exact = exact_run(run)
    run.listener.phase("draw answers")
    with exact.model() as loaded:
        prompts, longest = prompts_of(ready, held, loaded, rows, run)
        drawn = sampling({}, 1, run.recipe.seed)
        drawn_questions = questions(loaded, list(prompts.values()), longest, stop_tokens(loaded), drawn)
        tuned = scored(partial(log_probabilities, loaded), drawn_questions)
    with exact.model(began=True) as loaded:
        began = scored(partial(log_probabilities, loaded), drawn_questions)
    chosen = held.select(list(prompts))
    groups = numbers_of(chosen, identities(chosen, ready.task, 0), ready.group_column(chosen), run.listener)[1]
    kl, kl_per_token, log_ratio = divergences(tuned, began, run.recipe.seed, groups)
    return OwnAnswers(
        split,
        len(drawn_questions),
        sum(map(len, tuned)),
        sum(not question.ended for question in drawn_questions),
        longest,
        reference_model(ready, run.directory).experiment.make_strategy().starts_from or "",
        kl,
        kl_per_token,
        log_ratio,
    )


def divergences(
    tuned: Sequence[np.ndarray], began: Sequence[np.ndarray], seed: int, groups: np.ndarray
) -> tuple[Estimate, Estimate, Estimate]:
    """Return estimates of KL(tuned ‖ began): per answer, per token, and per answer by plain log-ratios.

    With r = p_began / p of each token that was drawn from p, the mean of r − 1 − log r is KL without bias, as that of
    −log r is, never negative, and of less variance where the models are near (Schulman 2020, Approximating KL
    Divergence, estimators k3 and k1). Summed over an answer's tokens it is that of the answer (the chain rule).

    Args:
        tuned, began: the log-probabilities of each answer's tokens, (tokens,).
        groups: (answers,) group numbers; answers of one group are resampled together.
    """
    ratios = [before - now for now, before in zip(tuned, began, strict=True)]
    low_variance = np.array([(np.expm1(ratio) - ratio).sum() for ratio in ratios])
    plain = np.array([-ratio.sum() for ratio in ratios])
    tokens = np.array([len(ratio) for ratio in ratios], dtype=np.float64)
    ones, weights = np.ones(len(ratios)), Weights(groups, seed, RESAMPLES, duplicates=np.arange(len(ratios)))
    drawn = (len(weights), weights.worth()) if weights.grouped else (None, None)

    def estimate(values: np.ndarray, of: np.ndarray) -> Estimate:
        resampled = weights.resample(lambda w: (w @ values) / (w @ of))
        interval = percentile_interval(resampled, weights.worth())
        return Estimate(float(values.sum() / of.sum()), *interval, weights.groups, *drawn)

    return estimate(low_variance, ones), estimate(low_variance, tokens), estimate(plain, ones)
