"""Reward models: a score of an answer to a prompt, learnt from preferences between two answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import (
    Batch,
    Config,
    Example,
    Features,
    Labels,
    LoadedModel,
    Prediction,
    Recognised,
    Task,
    TaskTraits,
    View,
    usual,
)
from ftengine.errors import DataError, column_names, shown
from ftengine.model import IGNORED, Criterion
from ftengine.model.tokens import length_limit, stack_tokens
from ftengine_builtins.preference_layouts import SIDES, pair_of, preference
from ftengine_builtins.tasks.causal_lm import DEFAULT_MAX_LENGTH, CausalLM, CausalLMConfig
from ftengine_builtins.tasks.class_labels import as_number
from ftengine_builtins.tasks.compared_answers import WHOLE, cut_to
from ftengine_builtins.tasks.modes import evaluated, refuse_options
from ftengine_builtins.tasks.preference import REJECTED, Preference, PreferenceConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

KEYS = ("input_ids", "labels")


class RewardConfig(Config):
    """Options of task reward."""

    margin: str | None = Field(
        None, min_length=1, description="column of the least difference of the two scores, a number; null: 0"
    )
    centring: float | None = Field(
        None,
        ge=0,
        description="weight of the squared sum of both scores, which keeps their mean near 0; null: none",
        json_schema_extra=usual(0, 1),
    )
    max_length: int | None = Field(
        None,
        ge=4,
        description="longest prompt with its answer in tokens; null: "
        f"{DEFAULT_MAX_LENGTH}, or the model's limit if less",
    )
    thoughts: Literal["read", "remove"] = Field(
        "read", description="the assistant's thoughts: read them as part of the answer, or remove them"
    )
    chat_template: Literal["auto", "never"] = Field(
        "auto", description="auto writes prompt and answers as a chat where the model has a template; never: as text"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="arguments for the chat template, as {enable_thinking: false}; a row's own take precedence"
    )
    system: str | None = Field(None, min_length=1, description="system message for prompts without one")


class Reward(Task):
    """Score answers, so that of two answers to a prompt the preferred one has the higher score (Bradley & Terry 1952).

    The loss of a pair is −logσ(s_chosen − s_rejected − margin) + λ (s_chosen + s_rejected)², with λ `centring`
    (Eisenstein et al. 2023, arXiv:2312.09244). Rows are those of task preference, read and written in the same way; the
    score is the one output of a sequence classifier that has read prompt and answer.
    """

    name = "reward"
    traits = TaskTraits(most_epochs=3, pipeline_tag="text-classification")
    paper = "Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2"
    head = "sequence-classification"
    modality = "text"
    Config = RewardConfig
    evaluators = ("rewards",)
    predicts = frozenset({"chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens", "margin"})

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        own = self.config.model_dump(exclude={"margin", "centring", "max_length"})
        own["thoughts"] = "train" if own["thoughts"] == "read" else "remove"
        self._pairs = Preference(PreferenceConfig(max_length=self.config.max_length, **own))
        self._language = CausalLM(CausalLMConfig(max_length=WHOLE, **own))

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Recognise pairs; `init` proposes task preference for them unless this one is requested."""
        recognised = Preference.recognise(columns, rows)
        if recognised is None:
            return None
        if not any(isinstance(value, list) for row in rows for value in row.values()):
            return replace(recognised, certainty=2)
        return replace(recognised, certainty=0, note="Lists of messages need a model with a chat template.")

    def check_columns(self, columns: Sequence[str]) -> None:
        self._pairs.check_columns(columns)
        if self.config.margin is not None and self.config.margin not in columns:
            raise DataError(
                f"the data has no column {self.config.margin!r} (task.margin; columns: {column_names(columns)})."
            )

    def view(self, row: Example) -> View:
        return self._pairs.view(row)

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        return self._pairs.with_inputs(row, inputs)

    def learn_labels(self, splits: Mapping[str, Iterable[Example]]) -> Labels:
        """Return the one output."""
        return Labels("regression", ("reward",))

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return the features of task preference, and the required difference of the scores."""
        least = 0.0 if self.config.margin is None else as_number(example.get(self.config.margin))
        if least is None:
            margin = shown(example.get(self.config.margin))
            raise DataError(f"`{self.config.margin}` is {margin}; the margin of a pair must be a finite number.")
        features = self._encode_pair(example, processor, max_length)
        features.inputs["least"] = float(least)
        return features

    def _encode_pair(self, row: Example, processor: Any, max_length: int | None) -> Features:
        """Encode a pair to the end of the template's text, as for serving (`apply_chat_template`)."""
        return self._pairs.encode_pair(row, processor, max_length=max_length, behind=True)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Stack the chosen sides of all pairs, and then the rejected ones: (2n, T); margins are (n,)."""
        import torch

        return {
            **self._pairs.collate(features, processor),
            "least": torch.tensor([example.inputs["least"] for example in features]),
        }

    def raw_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return (sequences, 1) scores in at least fp32."""
        from ftengine.model import raw_outputs, widen

        return widen(raw_outputs(model, {key: batch[key] for key in ("input_ids", "attention_mask")}))

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the pairs, their number)."""
        from torch.nn import functional

        chosen, rejected = self.raw_outputs(model, batch)[:, 0].chunk(2)
        losses = -functional.logsigmoid(chosen - rejected - batch["least"])
        if self.config.centring:
            losses = losses + self.config.centring * (chosen + rejected) ** 2
        return losses.sum(), len(losses)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return both scores, their difference and the tokens of both answers."""
        import torch

        with torch.no_grad():
            chosen, rejected = self.raw_outputs(model, batch)[:, 0].chunk(2)
        tokens = (batch["labels"][:, 1:] != IGNORED).sum(1).chunk(2)
        columns = (chosen, rejected, *tokens, chosen - rejected)
        names = ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens", "margin")
        return [dict(zip(names, row, strict=True)) for row in zip(*(x.tolist() for x in columns), strict=True)]

    def decode_prediction(self, prediction: Prediction) -> dict[str, Any]:
        return {"chosen": prediction["chosen_reward"], "rejected": prediction["rejected_reward"]}

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        return self._pairs.decode_example(features, processor)

    def check_input(self, row: Example) -> None:
        """Refuse a row that holds neither an answer nor two."""
        if pair_of(row) is not None:
            preference(row)
        elif row.get("completion") is None and row.get("messages") is None and row.get("text") is None:
            raise DataError("the row has no answer to score: it needs `prompt` and `completion`, `messages` or `text`.")

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"reward": score} for a row's answer, {"chosen": score, "rejected": score} for a pair.

        There are no options.
        """
        refuse_options(self, options)
        encoded = [self._sides(row, loaded) for row in rows]
        if not encoded:
            return []
        sequences = stack_tokens([ids for sides in encoded for ids in sides], loaded.processor)
        scores = iter(evaluated(self, loaded, sequences)[:, 0].tolist())
        names = {1: ("reward",), 2: SIDES}
        return [{name: next(scores) for name in names[len(sides)]} for sides in encoded]

    def _sides(self, row: Example, loaded: LoadedModel) -> list[dict[str, list[int]]]:
        """Return the tokens of a row's answer with its prompt, or of both answers of a pair, cut as in training."""
        if pair_of(row) is not None:
            pair = self._encode_pair(row, loaded.processor, loaded.max_length).inputs
            return [{key: pair[f"{side}{key}"] for key in KEYS} for side in ("", REJECTED)]
        limit = length_limit(self.config.max_length, loaded.max_length, DEFAULT_MAX_LENGTH)
        features = self._language.encode(row, loaded.processor)
        return cut_to(limit, [features], loaded.processor, behind=True)[0]
