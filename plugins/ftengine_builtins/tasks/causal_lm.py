"""Causal language modelling on conversations, prompts with completions, and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import Batch, Config, Example, Features, LoadedModel, Prediction, TaskTraits, View
from ftengine.errors import DataError, RecipeError
from ftengine.model import Criterion
from ftengine.model.chat import Message, conversation_spans, has_template, is_trained, render, with_system
from ftengine.model.generation import GenerationOptions, complete, made_to_fit, stop_tokens
from ftengine.model.tokens import (
    IGNORED,
    LONG_TEXT,
    Span,
    encode_spans,
    full_length,
    length_limit,
    missing_end,
    part_within,
    prompt_tokens,
    unknown_in,
)
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.generative import GenerativeTask
from ftengine_builtins.tasks.language_rows import as_messages, read_text, shape_of

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MAX_LENGTH = 1024


class CausalLMConfig(Config):
    """Options of task causal-lm."""

    max_length: int | None = Field(
        None, ge=2, description=f"longest example in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )
    truncate: Literal["right", "left"] = Field("right", description="which end of a longer example is cut off")
    loss_on: Literal["completions", "all"] = Field(
        "completions", description="train on the assistant's turns and completions alone, or on every token"
    )
    chat_template: Literal["auto", "never"] = Field(
        "auto", description="auto writes prompt and completion as a chat where the model has a template; never: as text"
    )
    system: str | None = Field(None, min_length=1, description="system message of conversations that have none")
    packing: bool = Field(
        False,
        description="pack a micro-batch's examples into one sequence without padding, attention kept within each; "
        "refused where the model cannot",
    )


class CausalLMOptions(GenerationOptions):
    """How answers are generated, and to what."""

    continues: bool = Field(
        False, description="continue a plain text as it stands, also where the model has a chat template"
    )


class CausalLM(GenerativeTask):
    """Predict the next token of conversations, completions or text.

    A row has `messages` (a list of {role, content}; roles system, user, assistant), or `prompt` and `completion`
    (texts, or lists of messages), or `text`. Conversations are written in the model's own chat template, and so are
    prompt and completion where the model has one. Without a template a completion follows its prompt as it stands;
    completions and texts then end with the tokenizer's EOS, so that the model learns to stop. Of a conversation, the
    assistant's turns are trained on, each with the token that ends it, except those with `"weight": 0`.
    """

    name = "causal-lm"
    traits = TaskTraits(is_default=True, example_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    head = "causal-lm"
    Config = CausalLMConfig
    ahead = 1

    def __init__(self, config: CausalLMConfig | None = None) -> None:
        from ftengine.model.packing import Packer

        super().__init__(config)
        self._packer = Packer()

    recognise = staticmethod(language_rows.recognise)
    check_columns = staticmethod(language_rows.check_columns)
    with_inputs = staticmethod(language_rows.with_inputs)

    def view(self, row: Example) -> View:
        """See what `language_rows.view` tells.

        What is no input is never changed, so that the model never learns to write what was changed, except where the
        data is plain text or the loss is on everything.
        """
        return language_rows.view(row, all_trained=self.config.loss_on == "all")

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Return input_ids and labels (both (length,), labels unshifted, -100 where nothing is trained).

        `weight` counts the labels that are predicted: all but the first token's, 0 where the first label was cut off.
        """
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        left = self.config.truncate == "left"
        text, spans, chat = self._written(example, processor)
        part, start = part_within(processor, text, limit, left=left)
        ids, labels = encode_spans(processor, part, [(first - start, last - start) for first, last in spans])
        if not chat:
            begin, end = _begin(processor, ids), missing_end(ids, processor)
            ids, labels = begin + ids + end, [IGNORED] * len(begin) + labels + end
        if self.config.loss_on == "all":
            labels = list(ids)
        full = full_length(len(ids), text, part)
        kept = slice(-limit, None) if left else slice(limit)
        ids, labels = ids[kept], labels[kept]
        return {
            "input_ids": ids,
            "labels": labels,
            "length": len(ids),
            "weight": sum(label != IGNORED for label in labels[1:]),
            "full_length": full,
            "unknown": unknown_in(ids, processor),
            "truncated": full > limit,
        } | ({} if spans else {"untrained": "every assistant turn has weight 0"})

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return (summed losses of the labelled tokens, their number)."""
        if not self.config.packing:
            return super().loss(model, batch, criterion)
        return self._loss.sum(model, *self._packer.pack(model, batch), criterion)

    def check_input(self, row: Example) -> None:
        """Refuse a row that holds nothing to answer."""
        shape = shape_of(row, answered=False)
        if shape == "text":
            read_text(row, "text")
        else:
            _question(as_messages(row, shape))

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row: the assistant's next turn, or how the text goes on.

        Where `messages` end with the assistant's turn, or a completion is given, that answer is left out
        and made anew. Plain text is a user's turn for a model with a chat template, unless `chat_template` is never or
        `continues` is set. Options are those of `CausalLMOptions`; all examples form one batch.
        """
        chosen = CausalLMOptions.read(options)
        if self.config.chat_template == "auto" and has_template(loaded.processor) and not chosen.continues:
            shapes = [shape_of(row, answered=False) for row in rows]
            rows = [{"prompt": read_text(x, "text")} if s == "text" else x for x, s in zip(rows, shapes, strict=True)]
        prompts = [self._prompt(row, loaded) for row in rows]
        return [{"completion": text} for text in complete(loaded, prompts, chosen, stop_tokens(loaded))]

    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row: what was asked, answered and to be answered.

        Of a conversation that is the assistant's last turn, of a text the second half of its tokens, in answer to
        what stands before. The reference is None where a row has nothing to be answered. Options are those of
        `GenerationOptions`; all examples form one batch. A prompt that leaves no room for its answer loses its
        beginning, and at most half of what the model reads is generated.
        """
        asked = [self._asked(row, loaded) for row in rows]
        prompts, chosen = made_to_fit(loaded, [ids for ids, _, _ in asked], GenerationOptions.read(options))
        answers = zip(complete(loaded, prompts, chosen, stop_tokens(loaded)), asked, strict=True)
        return [{"prompt": q, "completion": text, "reference": reference} for text, (_, q, reference) in answers]

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode with special tokens visible; the first token is never predicted, so never trained on."""
        tokens = zip(features["input_ids"], [IGNORED, *features["labels"][1:]], strict=True)
        runs = groupby(tokens, key=lambda pair: pair[1] != IGNORED)
        return [(processor.decode([token for token, _ in run]), trained) for trained, run in runs]

    def _written(self, example: Example, processor: Any) -> tuple[str, list[Span], bool]:
        """Return a row as text, what of it is trained on, and whether it is written in the chat template."""
        shape = shape_of(example)
        if self._is_chat(shape, processor):
            messages, given = as_messages(example, shape), language_rows.given_turns(example)
            learnt = messages[len(given) :]
            if self.config.loss_on == "all":
                if any(turn["role"] == "assistant" and turn.get("weight") == 0 for turn in [*given, *learnt]):
                    raise DataError(
                        "a message has weight 0, which leaves it out of the loss, but task.loss_on is all. Set it to "
                        "completions, or take the weights out of the data."
                    )
                text = render(processor, with_system(messages, self.config.system))
                return text, [(0, len(text))], True
            if not any(turn["role"] == "assistant" for turn in (learnt if given else messages[1:])):
                where = "in its completion" if given else "that answers something"
                raise DataError(f"the conversation has no assistant turn {where}; nothing to train on.")
            return *conversation_spans(processor, with_system(messages, self.config.system)), True
        if shape == "prompt":
            prompt = read_text(example, "prompt")
            text, start = prompt + read_text(example, "completion"), len(prompt)
        else:
            text, start = read_text(example, "text"), 0
        return text, [(start, len(text))], False

    def _prompt(self, example: Example, loaded: LoadedModel) -> list[int]:
        """Return the tokens that the answer to a row continues, as `prompt_tokens` does."""
        processor, limit = loaded.processor, loaded.max_length
        shape = shape_of(example, answered=False)
        if self._is_chat(shape, processor):
            question = with_system(_question(as_messages(example, shape)), self.config.system)
            return prompt_tokens(processor, render(processor, question, prompt=True), limit)
        ids = prompt_tokens(processor, read_text(example, shape), limit)
        return _begin(processor, ids) + ids

    def _asked(self, example: Example, loaded: LoadedModel) -> tuple[list[int], str, str | None]:
        """Return the tokens (see `_prompt`) and the text of a row's prompt, and what is to be answered."""
        processor, limit = loaded.processor, loaded.max_length
        shape = shape_of(example, answered=False)
        if self._is_chat(shape, processor):
            messages = with_system(as_messages(example, shape), self.config.system)
            said = [k for k, message in enumerate(messages) if k and message["role"] == "assistant"]
            replies = [k for k in said if is_trained(messages[k])] or said
            question = messages[: replies[-1]] if replies else messages
            reference = messages[replies[-1]]["content"] if replies else None
            said = [f"{message['role']}: {message['content']}" for message in question]
            prompt = question[0]["content"] if len(question) == 1 else "\n".join(said)
            return prompt_tokens(processor, render(processor, question, prompt=True), limit), prompt, reference
        text = read_text(example, shape)
        text = text if shape == "prompt" else text[:LONG_TEXT]
        ids = prompt_tokens(processor, text, limit)
        if shape == "prompt":
            reference = example.get("completion")
        else:
            half = (len(ids) + 1) // 2
            text, reference = processor.decode(ids[:half]), processor.decode(ids[half:]) or None
            ids = ids[:half]
        return _begin(processor, ids) + ids, text, reference

    def _is_chat(self, shape: str, processor: Any) -> bool:
        """Say whether a row of this shape is written in the chat template.

        It is refused (RecipeError) where it would have to be but cannot, or the system message has no place in it.
        """
        if shape == "messages" and self.config.chat_template == "never":
            raise RecipeError(
                "task.chat_template is never, and the data has `messages`. Set auto, or give `prompt` and `completion`."
            )
        if shape == "messages" and not has_template(processor):
            raise RecipeError(
                "the data has `messages`, but this model's tokenizer has no chat template. Use a model that was tuned "
                "for chat, put a chat_template.jinja into the model's folder, or give `prompt` and `completion`."
            )
        chat = shape != "text" and self.config.chat_template == "auto" and has_template(processor)
        if self.config.system is not None and not chat:
            raise RecipeError(
                f"task.system is set, but rows of `{shape}` are read as plain text here, where a system message has "
                "no place. Leave task.system out, or give `messages` to a model with a chat template."
            )
        return chat


def _question(messages: list[Message]) -> list[Message]:
    """Leave out the assistant's last turn, which is to be answered anew."""
    question = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not any(message["role"] == "user" for message in question):
        raise DataError("the conversation holds no user turn to answer.")
    return question


def _begin(processor: Any, ids: list[int]) -> list[int]:
    """Return the BOS that the tokenizer puts in front of text, unless the text brings it."""
    bos = processor.bos_token_id
    if bos is None or ids[:1] == [bos]:
        return []
    return [bos] if processor("")["input_ids"][:1] == [bos] else []
