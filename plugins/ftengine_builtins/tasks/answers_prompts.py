"""The common part of tasks whose rows are prompts that the model answers anew: rows, room, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftengine.api import (
    Batch,
    DrawRequest,
    Example,
    Features,
    LoadedModel,
    OnPolicyTask,
    Prediction,
    Prompt,
    TaskTraits,
    View,
)
from ftengine.chat import read_answer, stop_tokens
from ftengine.errors import DataError, column_names
from ftengine.generation import Answer, GenerationOptions, draw_answers, made_to_fit
from ftengine.text import counted
from ftengine_builtins.layouts import COLUMNS
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig
from ftengine_builtins.tasks.compared_answers import LANGUAGE, WHOLE, LanguageOptions
from ftengine_builtins.tasks.drawn_answers import DrawnAnswer, collated, draw_groups, example, step_seed
from ftengine_builtins.tasks.exchanges import TURNS, Environment, Started
from ftengine_builtins.tasks.generative import CausalLMOptions, LanguageTask, pieces_of
from ftengine_builtins.tasks.language_rows import Asked
from ftengine_builtins.tasks.prompt_rows import own_answer, without_answer

if TYPE_CHECKING:
    from torch import nn


class PromptOptions(LanguageOptions):
    """How a prompt is written, and answers are drawn."""

    num_generations: int = Field(8, ge=2, description="answers that are drawn for each prompt of a step")
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    temperature: float = Field(1.0, gt=0, description="of drawing, and of the probabilities in the loss")


class AnswersPrompts(OnPolicyTask, LanguageTask):
    """Learns from answers that the model draws; a row is a prompt. Its Config is derived from `PromptOptions`."""

    traits = TaskTraits(
        example_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        learning_rate_share=0.5,
        strategy_defaults=(("dropout", 0.0),),
        pipeline_tag="text-generation",
    )
    head = "causal-lm"
    ahead = 1
    predicts = frozenset[str]()
    predicts_probabilities = False
    environment: Environment | None = None
    """What replies to the model's turns; None: an answer is one turn."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        own = {key: getattr(self.config, key) for key in LANGUAGE}
        self._language = CausalLM(CausalLMConfig(max_length=WHOLE, **own))
        self.answers_per_row, self.answer_tokens = self.config.num_generations, self.config.max_new_tokens

    # Rows.

    def check_columns(self, columns: Sequence[str]) -> None:
        layouts = [{"prompt"}, {"instruction"}, {"query"}, *({column} for column in COLUMNS)]
        if not any(names <= set(columns) for names in layouts):
            raise DataError(
                f"the data has columns {column_names(columns) or '(none)'}; task {self.name!r} needs `prompt` (text, "
                "or messages) or `messages`. Rename columns with data.columns, e.g. {prompt: COLUMN}."
            )

    def view(self, row: Example) -> View:
        """See the prompt as input, and the row's own answer as the target."""
        try:
            asked = without_answer(row)
            own = own_answer(row).get("completion")
            if "messages" not in asked and isinstance(asked["prompt"], str):
                prompt = language_rows.read_text(asked, "prompt")
                return View([prompt], own, texts=[prompt, *([own] if own else [])], identity=prompt)
            viewed = language_rows.view(asked, all_trained=False)
        except DataError:
            return language_rows.unreadable(row)
        return View(viewed.inputs, own, texts=[*viewed.texts, *([own] if own else [])], identity=viewed.identity)

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

        DataError: that is longer than the model reads, or replies have no place in the prompt.
        """
        asked, most = self._asked(example_row, processor), self.answer_tokens
        if self.environment is not None and not asked.chat:
            raise DataError("task.reply needs a model with a chat template, in which replies have a place.")
        length = len(asked.ids) + most
        if max_length is not None and length > max_length:
            raise DataError(
                f"the prompt has {len(asked.ids):,} tokens, and with answers of up to {most:,} (task.max_new_tokens) "
                f"that is more than the {max_length:,} that this model reads. Shorten it, or lower task.max_new_tokens."
            )
        filler = processor.eos_token_id or 0
        return Features(example(asked.ids, [filler] * most, 1.0), length, self._weight(most), False)

    def _weight(self, tokens: int) -> float:
        """Return what an answer of so many tokens adds to the loss's weight."""
        return float(tokens)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return collated(features, processor)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode the prompt; the answer is drawn in training."""
        prompt = [piece for piece in pieces_of(features.inputs, processor) if not piece[1]]
        return [*prompt, (f"({counted(self.config.num_generations, 'answer')} of the model's)", True)]

    # A step.

    def drawn(self, request: DrawRequest, *, likeliest: bool = False) -> list[DrawnAnswer]:
        """Return the answers to all rows of a request, those of a row behind each other; or the likeliest one a row."""
        loaded, config = request.loaded, self.config
        asked = [self._asked(row, loaded.processor, loaded.max_length) for row in request.rows]
        seed = step_seed(request.seed, request.step)
        temperature, each = (0.0, 1) if likeliest else (config.temperature, config.num_generations)
        options = GenerationOptions(max_new_tokens=config.max_new_tokens, temperature=temperature, seed=seed)
        ids = [query.ids for query in asked]
        groups = draw_groups(loaded, ids, each, options, stop_tokens(loaded), request.attempt)
        drawn = zip(asked, groups, strict=True)
        answers = [self._answer(query, answer, loaded.processor) for query, group in drawn for answer in group]
        answers = [replace(one, attempt=request.attempt) for one in answers]
        if self.environment is None:
            return answers
        first, stop = request.attempt * each, stop_tokens(loaded)
        pairs = list(zip(request.rows, asked, strict=True))
        started = [self._started(*pair, first + k) for pair in pairs for k in range(each)]
        return self.environment.go_on(
            loaded,
            answers,
            started,
            lambda prompts, numbers: draw_answers(loaded, prompts, options, stop, numbers, own_settings=False),
        )

    def _started(self, row: Example, query: Asked, number: int) -> Started:
        conversation = self._language._conversation(without_answer(row))
        asked = replace(conversation, messages=tuple(query.messages), prompt_length=0)
        return Started(asked, {**row, **own_answer(row)}, number)

    def _answer(self, query: Asked, answer: Answer, processor: Any) -> DrawnAnswer:
        if query.chat:
            text = read_answer(processor, answer.tokens, opened=query.opened)[1]
        else:
            text = processor.decode(answer.tokens, skip_special_tokens=True)
        end = [] if answer.ended_by is None else [answer.ended_by]
        sampled = answer.log_probabilities or None
        return DrawnAnswer(query.ids, query.prompt, [*answer.tokens, *end], text, bool(end), sampled)

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
        if self.environment is not None:
            return self._exchanged(loaded, rows, queries, prompts, chosen)
        answers = self._language.completed(loaded, queries, prompts, chosen)
        return [
            {"prompt": query.prompt, "completion": text, "reference": query.reference}
            for query, (_, text, _, _) in zip(queries, answers, strict=True)
        ]

    def _exchanged(
        self,
        loaded: LoadedModel,
        rows: Sequence[Example],
        queries: Sequence[Asked],
        prompts: Sequence[list[int]],
        chosen: GenerationOptions,
    ) -> list[Prediction]:
        """Return what `generate` does, of answers of several turns: the last turn as completion, and all "turns"."""
        assert self.environment is not None
        stop, numbers = stop_tokens(loaded), chosen.numbers(len(queries)) or [0] * len(queries)

        def draw(some: Sequence[list[int]], those: Sequence[int]) -> list[Answer]:
            return draw_answers(loaded, some, chosen, stop, those)

        fitted = [replace(query, ids=ids) for query, ids in zip(queries, prompts, strict=True)]
        drawn = zip(fitted, draw(prompts, numbers), strict=True)
        answers = [self._answer(query, answer, loaded.processor) for query, answer in drawn]
        started = [self._started(*each) for each in zip(rows, queries, numbers, strict=True)]
        return [
            {"prompt": one.asked, "completion": one.text, "reference": query.reference, TURNS: list(one.turns)}
            for one, query in zip(self.environment.go_on(loaded, answers, started, draw), queries, strict=True)
        ]

    def _options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"max_new_tokens": self.config.max_new_tokens, **(options or {})}

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        return self._language.prompt(without_answer(row), loaded)
