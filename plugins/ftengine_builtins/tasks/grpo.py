"""On-policy learning from rewards of answers that the model draws: GRPO and related losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from ftengine.api import Batch, Config, DrawRequest, Draws, Example, Features, LoadedModel, Recognised, usual
from ftengine.chat import stop_tokens
from ftengine.errors import DataError, did_you_mean
from ftengine.model import IGNORED
from ftengine_builtins.rewards import RewardConfig, Rewards, Scored, scorers
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.answers_prompts import AnswersPrompts, PromptOptions
from ftengine_builtins.tasks.compared_answers import chosen_loss, require_sound
from ftengine_builtins.tasks.drawn_answers import (
    LOGPS,
    DrawnAnswer,
    Tempered,
    flat,
    log_probabilities,
    overlong,
    repeat_figures,
    reward_figures,
    why_idle,
    why_unscored,
)
from ftengine_builtins.tasks.exchanges import TURNS, Environment, ReplyOptions
from ftengine_builtins.tasks.policy_losses import LOSSES, DrawnTokens, PolicyLoss, Scale, require_rising
from ftengine_builtins.tasks.prompt_rows import own_answer
from ftengine_builtins.tasks.recognising import first_of, renamed

if TYPE_CHECKING:
    from torch import Tensor, nn


class PolicyLossOptions(Config):
    """The loss of drawn answers and its options."""

    loss: str | None = Field(None, description="grpo, dr-grpo, dapo, rloo, gspo or cispo; null: the first of them")
    beta: float | None = Field(
        None,
        ge=0,
        description="weight of the divergence from the model before training; null: 0, which leaves it out",
        json_schema_extra=usual(0, 1),
    )
    epsilon: float | None = Field(
        None, ge=0, lt=1, description="how far a ratio of probabilities may fall; null: the loss's"
    )
    epsilon_high: float | None = Field(
        None, ge=0, description="how far it may rise, of cispo the ratio itself; null: the loss's own, or epsilon"
    )
    scale_rewards: Scale | None = Field(
        None,
        description="divide advantages by the standard deviation of a prompt's rewards (group), of the step's (batch), "
        "or not (none); null: the loss's own",
    )


class GRPOConfig(PromptOptions, ReplyOptions, PolicyLossOptions):
    """Options of task grpo."""

    rewards: list[RewardConfig] = Field(
        [], description="functions that score answers, each with its weight; at least one"
    )
    mask_truncated: bool = Field(
        False, description="do not train on answers cut off at max_new_tokens; their rewards still count in the mean"
    )
    overlong_buffer: int | None = Field(
        None, ge=1, description="tokens before max_new_tokens in which an answer's reward falls by up to 1; null: none"
    )
    redraws: int = Field(
        0, ge=0, description="how often prompts whose answers all get the same reward are answered again in a step"
    )
    updates_per_draw: int = Field(1, ge=1, description="updates with the answers of a step; above 1 ratios are clipped")
    timeout: float = Field(5.0, gt=0, description="seconds that a reward function may take for an answer")
    scorers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="processes in which a function scores answers side by side; null: one a core, at most 8",
    )

    @model_validator(mode="after")
    def _fitting(self) -> GRPOConfig:
        if self.overlong_buffer is not None and self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"overlong_buffer is {self.overlong_buffer}; it is at most max_new_tokens, {self.max_new_tokens}"
            )
        if self.updates_per_draw == 1:
            for key in ("epsilon", "epsilon_high"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} bounds ratios, which are 1 while updates_per_draw is 1. Leave it out")
        return self


class GRPO(AnswersPrompts):
    """Learn from rewards of the model's own answers, as GRPO, Dr. GRPO, DAPO, RLOO, GSPO and CISPO do.

    A row is a prompt: `prompt` (text, or messages), or a conversation, whose last turn is dropped if it is the
    assistant's. Functions score the sampled answers; they get the row's columns by name, and the row's own answer as
    `completion`. Answers are sampled from the model's whole distribution.
    """

    name = "grpo"
    paper = "Shao et al. 2024, arXiv:2402.03300"
    Config = GRPOConfig
    evaluators = ("mean-reward",)
    progress_figure = "reward"
    losses: ClassVar[tuple[type[PolicyLoss], ...]] = LOSSES
    """Those that `task.loss` may name; the first is the default."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        for loss in self.losses:
            require_sound(loss, type(self))
        self.policy_loss: PolicyLoss = chosen_loss(self.losses, self.config, self._elsewhere)
        self.updates_per_draw = self.config.updates_per_draw
        self.uses_reference = self.policy_loss.beta > 0
        in_loss = self.uses_reference and not self.policy_loss.penalises_reward
        clips = self.config.updates_per_draw > 1
        further = (*(["kl"] if in_loss else []), *(["clip_ratio"] if clips else []))
        self.token_figures = ("entropy", "sampler_gap", "sampler_excess", *further)
        self._trains_truncated = not self.config.mask_truncated
        asked = self.config.model_dump(mode="json", include={"rewards", "max_new_tokens", "timeout"})
        self.evaluator_options = {"mean-reward": asked}
        if self.config.reply is not None:
            self._open_environment(self.config.reply)
        self._drawn_needed = clips or (self.uses_reference and self.policy_loss.penalises_reward)

    def _open_environment(self, place: str) -> None:
        own, owner, processes = self.config, f"task {self.name!r}", scorers(self.config.scorers)
        self.environment = Environment(
            place,
            own.timeout,
            owner,
            processes,
            most=own.max_turns,
            longest=own.max_reply_tokens,
            new=own.max_new_tokens,
        )
        self.answer_tokens = self._longest + (own.max_turns - 1) * own.max_reply_tokens
        self.generates = self.generates | {TURNS}  # type: ignore[misc]

    @property
    def _longest(self) -> int:
        """Most tokens that the model draws in an answer."""
        return self.config.max_new_tokens * (1 if self.environment is None else self.config.max_turns)

    def _given(self, row: Example, turns: Sequence[Any] = ()) -> dict[str, Any]:
        """Return what functions may take by name, of several turns those too."""
        own = self._rewards.arguments(row, own_answer(row))
        return own if self.environment is None else {**own, TURNS: list(turns)}

    @cached_property
    def _rewards(self) -> Rewards:
        return Rewards(self.config.rewards, self.config.timeout, f"task {self.name!r}", scorers(self.config.scorers))

    @cached_property
    def _sound_loss(self) -> PolicyLoss:
        require_rising(self.policy_loss)
        return self.policy_loss

    @property
    def _names(self) -> list[str]:
        """Names of the parts of a reward."""
        return [*self._rewards.names, *([] if self.config.overlong_buffer is None else ["overlong"])]

    def _elsewhere(self, name: str) -> str:
        return did_you_mean(name, [loss.name for loss in self.losses])

    # Rows.

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Accept prompts with or without answers; `init` proposes this task only if it is named with `--task`."""
        guess = language_rows.recognise(columns, rows)
        if guess is not None and "text" not in (guess.columns or columns):
            return replace(guess, certainty=0, options={"rewards": [{"name": "exact-match"}]})
        prompt = first_of(["prompt", "question", "instruction", "query"], columns)
        options = {"rewards": [{"function": "score.py:reward"}]}
        return None if prompt is None else Recognised(0, renamed(prompt=prompt), options)

    def check_columns(self, columns: Sequence[str]) -> None:
        if not self.config.rewards:
            raise DataError("task 'grpo' has no rewards. Set task.rewards, e.g. [{function: score.py:right}].")
        super().check_columns(columns)

    def encode(self, example_row: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the prompt with an answer as long as may be drawn (DataError: the row lacks what rewards read)."""
        self._rewards.check_row(self._given(example_row))
        if self.environment is not None:
            self.environment.check_row(self._given(example_row))
        return super().encode(example_row, processor, max_length=max_length)

    def _weight(self, tokens: int) -> float:
        return self.policy_loss.weight(tokens, self._longest)

    # A step.

    def start_scoring(self) -> None:
        self._rewards.start()
        if self.environment is not None:
            self.environment.start()

    def code_files(self) -> Sequence[Path]:
        return [*self._rewards.code_files(), *([] if self.environment is None else self.environment.code_files())]

    def runs_code(self) -> str | None:
        own = [self._rewards.runs_code(), self.config.reply and f"the function {self.config.reply}"]
        return " and ".join(filter(None, own)) or None

    def draw(self, request: DrawRequest) -> list[list[DrawnAnswer]]:
        """Return answers to each row, with log-probabilities where the loss needs them."""
        config, answers = self.config, self.drawn(request)
        if self._drawn_needed:
            logps = log_probabilities(self._loss, request, answers, config.temperature)
            answers = [replace(one, drawn=own) for one, own in zip(answers, logps, strict=True)]
        if self.uses_reference:
            with request.reference():
                logps = log_probabilities(self._loss, request, answers, config.temperature)
            answers = [replace(one, reference=own) for one, own in zip(answers, logps, strict=True)]
        each = config.num_generations
        return [answers[start : start + each] for start in range(0, len(answers), each)]

    def score(self, rows: Sequence[Example], drawn: Sequence[list[DrawnAnswer]]) -> list[list[DrawnAnswer]]:
        """Return answers with their rewards."""
        pairs = [
            (one.text, self._given(row, one.turns)) for row, answers in zip(rows, drawn, strict=True) for one in answers
        ]
        scored = iter(self._rewards.score_each(pairs))
        return [[replace(one, scored=self._shaped(one, next(scored))) for one in answers] for answers in drawn]

    def _shaped(self, answer: DrawnAnswer, scored: Scored) -> Scored:
        """Return an answer's rewards with the price of its length."""
        buffer = self.config.overlong_buffer
        if answer.error:
            scored = Scored(tuple(None for _ in scored.rewards), None, answer.error)
        if buffer is None:
            return scored
        penalty = overlong(answer.tokens, self._longest, buffer)
        total = None if scored.total is None else scored.total + penalty
        return Scored((*scored.rewards, penalty), total, scored.error)

    def measure(self, request: DrawRequest) -> list[float]:
        """Return the reward of the likeliest answer to each row, without the price of length; nan without one."""
        answers = self.drawn(request, likeliest=True)
        pairs = [(one.text, self._given(row, one.turns)) for one, row in zip(answers, request.rows, strict=True)]
        scored = self._rewards.score_each(pairs)
        totals = [None if one.error else own.total for one, own in zip(answers, scored, strict=True)]
        return [math.nan if total is None else total for total in totals]

    def draw_again(self, scored: Sequence[list[DrawnAnswer]], attempt: int) -> Sequence[int]:
        """Return the rows whose answers all have the same reward, up to `redraws` times."""
        return [i for i, group in enumerate(scored) if flat(group)] if attempt < self.config.redraws else []

    def learn_from(self, scored: Sequence[list[DrawnAnswer]]) -> Draws:
        """Return answers with advantages, figures of their rewards, and records of both."""
        import torch

        rewards = torch.tensor([[one.total for one in group] for group in scored], dtype=torch.float64)
        penalised = rewards
        if self.policy_loss.penalises_reward and self.uses_reference:
            gaps = [[sum(one.drawn or ()) - sum(one.reference or ()) for one in group] for group in scored]
            penalised = rewards - self.policy_loss.beta * torch.tensor(gaps, dtype=torch.float64)
        advantages = self.policy_loss.advantages(penalised).tolist()
        unscored = why_unscored(scored)
        examples, records, weights = list[Features](), list[dict[str, Any]](), list[float]()
        for group, own in zip(scored, advantages, strict=True):
            for one, advantage in zip(group, own, strict=True):
                trains = one.ended or self._trains_truncated
                tokens = one.tokens if trains else 0
                weights.append(self._weight(tokens))
                if trains and not unscored and (advantage or self.uses_reference):
                    examples.append(one.features(advantage, weights[-1]))
                records.append(one.record(advantage, self._names))
        why = "" if examples else unscored or why_idle(scored, rewards, self._trains_truncated)
        idle_weight = sum(weights) - sum(example.weight for example in examples)
        figures = reward_figures(scored, rewards, self._names) | repeat_figures(scored)
        if self.config.redraws:
            figures["redrawn"] = sum(group[0].attempt for group in scored)
        return Draws(examples, idle_weight, figures, records, why, unscored)

    def learn(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float, list[Tensor], int]:
        """Return (sum of losses, its weight, sums of entropy and others, number of tokens)."""
        import torch

        labels, criterion = batch["labels"], Tempered(self.config.temperature)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        losses, answers = self._loss.each(model, inputs, labels, criterion)
        trained = labels[:, self.ahead :] != IGNORED
        sampled, drawn, reference = (batch[key][:, self.ahead :][trained] if key in batch else None for key in LOGPS)
        drawn = -losses.detach() if drawn is None else drawn
        advantages = batch["advantages"].to(losses.dtype)
        tokens = DrawnTokens(-losses, drawn, answers, advantages, self._longest, reference)
        total, weight = self._sound_loss(tokens)
        entropies = torch.cat(criterion.entropies)[: len(losses)] if criterion.entropies else losses.detach()
        sums = {"entropy": entropies, "kl": tokens.k3.detach()}
        sums["sampler_excess"] = torch.zeros_like(drawn) if sampled is None else sampled - drawn
        sums["sampler_gap"] = sums["sampler_excess"].abs()
        if "clip_ratio" in self.token_figures:
            sums["clip_ratio"] = self.policy_loss.is_clipped(tokens).to(losses.dtype)
        return total, weight, [sums[name].sum() for name in self.token_figures], len(losses)

    def advice(self, rows: Sequence[Example], loaded: LoadedModel) -> Iterable[str]:
        """Yield warnings about the reward functions, and about a missing end token."""
        if not stop_tokens(loaded):
            yield (
                "neither model nor tokenizer names a token that ends an answer, so that all are cut off at "
                f"max_new_tokens {self.config.max_new_tokens}"
            )
        self._rewards.start()
        asked = [self._asked(row, loaded.processor).prompt for row in rows]
        arguments = [self._given(row) for row in rows]
        yield from self._rewards.faults(list(zip(asked, arguments, strict=True)))
