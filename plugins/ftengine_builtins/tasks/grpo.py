"""On-policy learning from rewards of answers that the model draws: GRPO and related losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from ftengine.api import (
    Batch,
    Config,
    DrawRequest,
    Draws,
    Example,
    Features,
    LoadedModel,
    OnPolicyTask,
    Prediction,
    Prompt,
    Recognised,
    TaskTraits,
    View,
)
from ftengine.chat import read_answer, stop_tokens
from ftengine.errors import DataError, column_names, did_you_mean
from ftengine.generation import Answer, GenerationOptions, made_to_fit
from ftengine.model import IGNORED
from ftengine_builtins.layouts import COLUMNS
from ftengine_builtins.rewards import RewardConfig, Rewards
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig
from ftengine_builtins.tasks.compared_answers import LANGUAGE, WHOLE, LanguageOptions, chosen_loss, require_sound
from ftengine_builtins.tasks.drawn_answers import (
    LOGPS,
    DrawnAnswer,
    Tempered,
    collated,
    draw_groups,
    example,
    log_probabilities,
    reward_figures,
    step_seed,
    why_idle,
    why_unscored,
)
from ftengine_builtins.tasks.generative import CausalLMOptions, LanguageTask, pieces_of
from ftengine_builtins.tasks.language_rows import Asked
from ftengine_builtins.tasks.policy_losses import LOSSES, DrawnTokens, PolicyLoss, Scale, require_rising
from ftengine_builtins.tasks.prompt_rows import own_answer, without_answer
from ftengine_builtins.tasks.recognising import first_of, renamed

if TYPE_CHECKING:
    from torch import Tensor, nn


class PolicyLossOptions(Config):
    """The loss of drawn answers and its options."""

    loss: str | None = Field(None, description="grpo, dr-grpo, dapo, rloo, gspo or cispo; null: the first of them")
    beta: float | None = Field(
        None, ge=0, description="weight of the divergence from the model before training; null: 0, which leaves it out"
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


class GRPOConfig(LanguageOptions, PolicyLossOptions):
    """Options of task grpo."""

    rewards: list[RewardConfig] = Field(
        [], description="functions that score answers, each with its weight; at least one"
    )
    num_generations: int = Field(8, ge=2, description="answers that are drawn for each prompt of a step")
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    temperature: float = Field(1.0, gt=0, description="of drawing, and of the probabilities in the loss")
    mask_truncated: bool = Field(
        False, description="do not train on answers cut off at max_new_tokens; their rewards still count in the mean"
    )
    updates_per_draw: int = Field(1, ge=1, description="updates with the answers of a step; above 1 ratios are clipped")
    timeout: float = Field(5.0, gt=0, description="seconds that a reward function may take for an answer")

    @model_validator(mode="after")
    def _unclipped(self) -> GRPOConfig:
        if self.updates_per_draw == 1:
            for key in ("epsilon", "epsilon_high"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} bounds ratios, which are 1 while updates_per_draw is 1. Leave it out")
        return self


class GRPO(OnPolicyTask, LanguageTask):
    """Learn from rewards of the model's own answers, as GRPO, Dr. GRPO, DAPO, RLOO, GSPO and CISPO do.

    A row is a prompt: `prompt` (text, or messages), or a conversation, whose last turn is left out where it is the
    assistant's. Functions score the answers that the model draws; they get the row's columns by name, and `completion`,
    its own answer as text. Answers are drawn from the model's whole distribution.
    """

    name = "grpo"
    paper = "Shao et al. 2024, arXiv:2402.03300"
    traits = TaskTraits(
        example_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        learning_rate_share=0.5,
        strategy_defaults=(("dropout", 0.0),),
        pipeline_tag="text-generation",
    )
    head = "causal-lm"
    ahead = 1
    Config = GRPOConfig
    evaluators = ("mean-reward",)
    predicts = frozenset[str]()
    predicts_probabilities = False
    losses: ClassVar[tuple[type[PolicyLoss], ...]] = LOSSES
    """Those that `task.loss` may name; the first is the default."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        for loss in self.losses:
            require_sound(loss, type(self))
        own = {key: getattr(self.config, key) for key in LANGUAGE}
        self._language = CausalLM(CausalLMConfig(max_length=WHOLE, **own))
        self.policy_loss: PolicyLoss = chosen_loss(self.losses, self.config, self._elsewhere)
        self.answers_per_row, self.updates_per_draw = self.config.num_generations, self.config.updates_per_draw
        self.uses_reference = self.policy_loss.beta > 0
        in_loss = self.uses_reference and not self.policy_loss.penalises_reward
        clips = self.config.updates_per_draw > 1
        further = (*(["kl"] if in_loss else []), *(["clip_ratio"] if clips else []))
        self.token_figures = ("entropy", "sampler_gap", *further)
        self._trains_truncated = not self.config.mask_truncated
        asked = self.config.model_dump(mode="json", include={"rewards", "max_new_tokens", "timeout"})
        self.evaluator_options = {"mean-reward": asked}
        self._drawn_needed = clips or (self.uses_reference and self.policy_loss.penalises_reward)

    @cached_property
    def _rewards(self) -> Rewards:
        return Rewards(self.config.rewards, self.config.timeout, f"task {self.name!r}")

    @cached_property
    def _sound_loss(self) -> PolicyLoss:
        require_rising(self.policy_loss)
        return self.policy_loss

    def _elsewhere(self, name: str) -> str:
        return did_you_mean(name, [loss.name for loss in self.losses])

    # Rows.

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Take prompts, with or without answers, where the user names the task."""
        guess = language_rows.recognise(columns, rows)
        if guess is not None and "text" not in (guess.columns or columns):
            return replace(guess, certainty=0, options={"rewards": [{"name": "exact-match"}]})
        prompt = first_of(["prompt", "question", "instruction", "query"], columns)
        options = {"rewards": [{"function": "score.py:reward"}]}
        return None if prompt is None else Recognised(0, renamed(prompt=prompt), options)

    def check_columns(self, columns: Sequence[str]) -> None:
        if not self.config.rewards:
            raise DataError("task 'grpo' has no rewards. Set task.rewards, e.g. [{function: score.py:right}].")
        layouts = [{"prompt"}, {"instruction"}, {"query"}, *({column} for column in COLUMNS)]
        if not any(names <= set(columns) for names in layouts):
            raise DataError(
                f"the data has columns {column_names(columns) or '(none)'}; task 'grpo' needs `prompt` (text, or "
                "messages) or `messages`. Rename columns with data.columns, e.g. {prompt: COLUMN}."
            )

    def view(self, row: Example) -> View:
        """See the prompt as input, and the row's own answer as the target."""
        try:
            asked = without_answer(row)
            own = own_answer(row).get("completion")
            if "messages" not in asked and isinstance(asked["prompt"], str):
                prompt = language_rows.read_text(asked, "prompt")
                return View([prompt], own, texts=[prompt, *([own] if own else [])], identity=prompt)
            seen = language_rows.view(asked, all_trained=False)
        except DataError:
            return language_rows.unreadable(row)
        return View(seen.inputs, own, texts=[*seen.texts, *([own] if own else [])], identity=seen.identity)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        asked = without_answer(row)
        if "messages" not in asked and isinstance(asked["prompt"], str):
            language_rows.read_text(asked, "prompt")
            return {**row, "prompt": inputs[0]}
        changed = language_rows.with_inputs(asked, inputs)
        answer = list(row.get("messages") or ())[len(asked.get("messages") or ()) :]
        return {**row, **changed, **({"messages": [*changed["messages"], *answer]} if answer else {})}

    def check_input(self, row: Example) -> None:
        self._language.check_input(without_answer(row))

    def _asked(self, row: Example, processor: Any, limit: int | None = None) -> Asked:
        asked = self._language.asked(without_answer(row), processor, limit, anew=True)
        return replace(asked, reference=own_answer(row).get("completion"))

    def encode(self, example_row: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the prompt with an answer as long as may be drawn, by which time and memory are measured.

        DataError: that is longer than the model reads, or the row lacks what rewards read.
        """
        self._rewards.check_row(self._rewards.arguments(example_row, own_answer(example_row)))
        asked, most = self._asked(example_row, processor), self.config.max_new_tokens
        length = len(asked.ids) + most
        if max_length is not None and length > max_length:
            raise DataError(
                f"the prompt has {len(asked.ids):,} tokens, and with answers of up to {most:,} (task.max_new_tokens) "
                f"that is more than the {max_length:,} that this model reads. Shorten it, or lower task.max_new_tokens."
            )
        filler = processor.eos_token_id or 0
        weight = self.policy_loss.weight(most, most)
        return Features(example(asked.ids, [filler] * most, 1.0), length, weight, False)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return collated(features, processor)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode the prompt; the answer is drawn in training."""
        prompt = [piece for piece in pieces_of(features.inputs, processor) if not piece[1]]
        return [*prompt, (f"({self.config.num_generations} answers of the model's)", True)]

    # A step.

    def start_scoring(self) -> None:
        self._rewards.start()

    def code_files(self) -> Sequence[Path]:
        return self._rewards.code_files()

    def draw(self, request: DrawRequest) -> list[list[DrawnAnswer]]:
        """Return answers to each row, with log-probabilities where the loss needs them."""
        loaded, config = request.loaded, self.config
        asked = [self._asked(row, loaded.processor, loaded.max_length) for row in request.rows]
        seed = step_seed(request.seed, request.step)
        options = GenerationOptions(max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed)
        drawn = draw_groups(
            loaded, [query.ids for query in asked], config.num_generations, options, stop_tokens(loaded)
        )
        answers = [
            self._answer(query, answer, loaded.processor)
            for query, group in zip(asked, drawn, strict=True)
            for answer in group
        ]
        if self._drawn_needed:
            logps = log_probabilities(self._loss, request, answers, config.temperature)
            answers = [replace(one, drawn=own) for one, own in zip(answers, logps, strict=True)]
        if self.uses_reference:
            with request.reference():
                logps = log_probabilities(self._loss, request, answers, config.temperature)
            answers = [replace(one, reference=own) for one, own in zip(answers, logps, strict=True)]
        each = config.num_generations
        return [answers[start : start + each] for start in range(0, len(answers), each)]

    def _answer(self, query: Asked, answer: Answer, processor: Any) -> DrawnAnswer:
        if query.chat:
            text = read_answer(processor, answer.tokens, opened=query.opened)[1]
        else:
            text = processor.decode(answer.tokens, skip_special_tokens=True)
        end = [] if answer.ended_by is None else [answer.ended_by]
        sampled = answer.log_probabilities or None
        return DrawnAnswer(query.ids, query.prompt, [*answer.tokens, *end], text, bool(end), sampled)

    def score(self, rows: Sequence[Example], drawn: Sequence[list[DrawnAnswer]]) -> list[list[DrawnAnswer]]:
        """Return answers with their rewards."""
        groups = []
        for row, answers in zip(rows, drawn, strict=True):
            arguments = self._rewards.arguments(row, own_answer(row))
            groups.append([replace(one, scored=self._rewards.score(one.text, arguments)) for one in answers])
        return groups

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
                tokens = len(one.ids) if trains else 0
                weights.append(self.policy_loss.weight(tokens, self.config.max_new_tokens))
                if trains and not unscored and (advantage or self.uses_reference):
                    examples.append(one.features(advantage, weights[-1]))
                records.append(one.record(advantage, self._rewards.names))
        why = "" if examples else unscored or why_idle(scored, rewards, self._trains_truncated)
        idle_weight = sum(weights) - sum(example.weight for example in examples)
        figures = reward_figures(scored, rewards, self._rewards.names)
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
        tokens = DrawnTokens(-losses, drawn, answers, advantages, self.config.max_new_tokens, reference)
        total, weight = self._sound_loss(tokens)
        entropies = torch.cat(criterion.entropies)[: len(losses)] if criterion.entropies else losses.detach()
        sums = {"entropy": entropies, "kl": tokens.k3.detach()}
        sums["sampler_gap"] = torch.zeros_like(drawn) if sampled is None else (sampled - drawn).abs()
        if "clip_ratio" in self.token_figures:
            sums["clip_ratio"] = self.policy_loss.is_clipped(tokens).to(losses.dtype)
        return total, weight, [sums[name].sum() for name in self.token_figures], len(losses)

    # Answers.

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return nothing: what is measured are answers."""
        return [{} for _ in batch["input_ids"]]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return dict(prediction)

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row, as task causal-lm does."""
        return self._language.infer(loaded, [without_answer(row) for row in rows], self._options(options))

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row, whose reference is its own answer, if any."""
        queries = [self._asked(row, loaded.processor, loaded.max_length) for row in rows]
        config = CausalLMOptions.read(self._options(options))
        prompts, chosen = made_to_fit(loaded, [query.ids for query in queries], config)
        answers = self._language.completed(loaded, queries, prompts, chosen)
        return [
            {"prompt": query.prompt, "completion": text, "reference": query.reference}
            for query, (_, text, _, _) in zip(queries, answers, strict=True)
        ]

    def _options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"max_new_tokens": self.config.max_new_tokens, **(options or {})}

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        return self._language.prompt(without_answer(row), loaded)

    def advice(self, rows: Sequence[Example], loaded: LoadedModel) -> Iterable[str]:
        """Try the rewards, and look for a token that ends answers."""
        if not stop_tokens(loaded):
            yield (
                "neither model nor tokenizer names a token that ends an answer, so that all are cut off at "
                f"max_new_tokens {self.config.max_new_tokens}"
            )
        self._rewards.start()
        asked = [self._asked(row, loaded.processor).prompt for row in rows]
        arguments = [self._rewards.arguments(row, own_answer(row)) for row in rows]
        yield from self._rewards.faults(list(zip(asked, arguments, strict=True)))
