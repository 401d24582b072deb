"""Causal language modelling on conversations, prompts with completions, and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftengine.api import (
    Batch,
    Config,
    Conversation,
    Example,
    Features,
    LoadedModel,
    Prediction,
    Prompt,
    TaskTraits,
    View,
)
from ftengine.chat import has_template, read_answer, render, stop_tokens, with_system
from ftengine.chat.answers import OPENED, read_calls, reads_calls
from ftengine.chat.turn_ends import end_turn
from ftengine.chat.turns import Written, answers, write
from ftengine.errors import DataError, RecipeError
from ftengine.generation import GenerationOptions, generate, made_to_fit
from ftengine.model import Criterion
from ftengine.model.tokens import (
    IGNORED,
    LONG_TEXT,
    encode_spans,
    full_length,
    length_limit,
    missing_end,
    part_within,
    prompt_tokens,
    unknown_in,
)
from ftengine_builtins.layouts import recognised
from ftengine_builtins.tasks import language_rows
from ftengine_builtins.tasks.chat_counts import counts_of, kind_of, with_layout
from ftengine_builtins.tasks.generative import UNREADABLE_CALLS, CausalLMOptions, LanguageTask, pieces_of
from ftengine_builtins.tasks.language_rows import Asked, beginning_of, read_row, read_text, shape_of

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MAX_LENGTH = 1024


class CausalLMConfig(Config):
    """Options of task causal-lm."""

    max_length: int | None = Field(
        None, ge=2, description=f"longest example in tokens; null: {DEFAULT_MAX_LENGTH}, or the model's limit if less"
    )
    truncate: Literal["right", "left"] = Field("right", description="the end of a longer example that is cut off")
    train_on: Literal["completion", "assistant", "last", "all"] = Field(
        "completion",
        description="completion: the assistant's turns, without those of a row's prompt; assistant: all of "
        "its turns; last: those after the user's last turn; all: every token",
    )
    thoughts: Literal["train", "mask", "remove"] = Field(
        "train", description="the assistant's thoughts: train on them, mask them in the loss, or remove them"
    )
    chat_template: Literal["auto", "never"] = Field(
        "auto", description="auto writes prompt and completion as a chat where the model has a template; never: as text"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="arguments for the chat template, as {enable_thinking: false}; a row's own take precedence"
    )
    system: str | None = Field(None, min_length=1, description="system message for conversations without one")
    packing: bool = Field(
        False,
        description="pack a micro-batch's examples into one sequence without padding; attention stays "
        "within each example",
    )


class CausalLM(LanguageTask):
    """Predict the next token of conversations, completions or text.

    A row has `messages` (a list of {role, content}, with tool calls, their results and thoughts), or `prompt` and
    `completion` (texts, or lists of messages), or `text`, or is a conversation in the layout of ShareGPT, Alpaca or
    ms-swift. Conversations are written in the model's own chat template, and so are prompt and completion if the model
    has one. Otherwise a completion follows its prompt unchanged; completions and texts then end with the tokenizer's
    EOS. The assistant's turns are trained on as they will be served, each with its end token, except those with
    `"weight": 0`.
    """

    name = "causal-lm"
    traits = TaskTraits(
        is_default=True, example_model="HuggingFaceTB/SmolLM2-135M-Instruct", pipeline_tag="text-generation"
    )
    head = "causal-lm"
    Config = CausalLMConfig
    ahead = 1
    generates = LanguageTask.generates | {"calls", "reference_calls"}

    def __init__(self, config: CausalLMConfig | None = None) -> None:
        from ftengine.model.packing import Packer

        super().__init__(config)
        self._packer = Packer()

    recognise = staticmethod(language_rows.recognise)
    check_columns = staticmethod(language_rows.check_columns)
    with_inputs = staticmethod(language_rows.with_inputs)

    def view(self, row: Example) -> View:
        """Return the view of `language_rows.view`.

        Augmenters only change inputs, so that the model does not learn to write augmented text, except if the data is
        plain text or the loss is on everything.
        """
        return language_rows.view(row, all_trained=self.config.train_on == "all")

    def encode(
        self, example: Example, processor: Any, *, max_length: int | None = None, part: int | None = None
    ) -> Features:
        """Return input_ids and labels (both (length,), labels unshifted, -100 where nothing is trained).

        `weight` counts the labels that are predicted: all but the first token's, 0 where the first label was cut off.
        """
        limit = length_limit(self.config.max_length, max_length, DEFAULT_MAX_LENGTH)
        cut_left = self.config.truncate == "left"
        written, conversation = self._written(example, processor, part)
        text = written.text
        piece, start = part_within(processor, text, limit, left=cut_left)
        ids, labels = encode_spans(processor, piece, [(first - start, last - start) for first, last in written.spans])
        if conversation is None:
            begin, end = beginning_of(processor, ids), missing_end(ids, processor)
            ids, labels = begin + ids + end, [IGNORED] * len(begin) + labels + end
        if self.config.train_on == "all":
            labels = list(ids)
        full, all_labels = full_length(len(ids), text, piece), labels
        remaining = range(len(ids))[-limit:] if cut_left else range(len(ids))[:limit]
        ids, labels = ids[remaining.start : remaining.stop], labels[remaining.start : remaining.stop]
        weight = sum(label != IGNORED for label in labels[1:])
        features = Features({"input_ids": ids, "labels": labels}, len(ids), weight, full > limit, full_length=full)
        features.unknown = unknown_in(ids, processor)
        if conversation is not None:
            counts = counts_of(processor, conversation, written, all_labels, remaining)
            if written.spans and written.spans[-1][1] - start > len(piece):  # it was cut before it was tokenised
                counts.pop("end_of_turn", None)
            features.kind, features.counts = kind_of(conversation), with_layout(counts, recognised(example)[0])
        if not written.spans and conversation is not None:
            features.untrained = language_rows.why_untrained(conversation, last=self.config.train_on == "last")
        return features

    def parts(self, row: Example, processor: Any) -> int:
        """Return how many examples a conversation makes, so that each turn trains as it will be served.

        1 for other rows.
        """
        row = self._as_read(row, processor)
        if not self._is_chat(shape_of(row), processor) or self.config.train_on == "all":
            return 1
        conversation = self._conversation(row)
        trained = self._trained(conversation)
        return len(write(processor, conversation, trained)) if len(trained) > 1 else 1

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
            language_rows.question_of(self._conversation(row))

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return {"completion": text} for each row: the assistant's next turn, or the continuation of the text.

        A thought stands under "thought". With several answers, "ended" says whether an answer ended by itself or was
        cut off.

        If `messages` end with the assistant's turn, or a completion is given, that answer is generated anew. Plain text
        is a user's turn for a model with a chat template, unless `chat_template` is never or `continues` is set.
        Options are those of `CausalLMOptions`; all examples form one batch.
        """
        chosen = CausalLMOptions.read(options)
        if self.config.chat_template == "auto" and has_template(loaded.processor) and not chosen.continues:
            shapes = [shape_of(row, answered=False) for row in rows]
            rows = [
                {**x, "prompt": read_text(x, "text")} if s == "text" else x for x, s in zip(rows, shapes, strict=True)
            ]
        prompts = [self.asked(row, loaded.processor, loaded.max_length, anew=True) for row in rows]
        answered = self.completed(loaded, prompts, [prompt.ids for prompt in prompts], chosen)
        answers = [{"completion": text, **({"thought": thought} if thought else {})} for thought, text, *_ in answered]
        return [
            answer | ({} if chosen.sample is None else {"ended": ended})
            for answer, (*_, ended) in zip(answers, answered, strict=True)
        ]

    def generate(
        self,
        loaded: LoadedModel,
        rows: Sequence[Example],
        options: Mapping[str, Any] | None = None,
        *,
        parts: Sequence[int | None] | None = None,
    ) -> list[Prediction]:
        """Return {"prompt", "completion", "reference"} for each row: the prompt, the model's answer and the row's.

        In a chat also "calls" and "reference_calls", JSON lists of {"name", "arguments"}; the latter is None if the row
        neither offers nor calls tools, the former if the template's calls cannot be read.

        In a conversation the assistant's last turn is answered; a text is continued from its middle. The reference is
        None if the row has no answer. All examples form one batch. A prompt that leaves no room loses its beginning,
        and at most half of the model's limit is generated.
        """
        config = CausalLMOptions.read(options)
        each = zip(rows, parts or [None] * len(rows), strict=True)
        queries = [self.asked(row, loaded.processor, loaded.max_length, calls=config.calls, part=n) for row, n in each]
        prompts, chosen = made_to_fit(loaded, [query.ids for query in queries], config)
        pairs = zip(self.completed(loaded, queries, prompts, chosen), queries, strict=True)
        return [query.answered(text, calls) for (_, text, calls, _), query in pairs]

    def check_generation(
        self, row: Example, processor: Any, options: Mapping[str, Any], *, part: int | None = None
    ) -> None:
        """Raise DataError if calls are to be measured but cannot be read in the format of the model's chat template."""
        if CausalLMOptions.read(options).calls and not self.asked(row, processor, calls=True, part=part).readable:
            raise DataError(UNREADABLE_CALLS)

    def completed(
        self, loaded: LoadedModel, queries: Sequence[Asked], prompts: Sequence[list[int]], chosen: GenerationOptions
    ) -> list[tuple[str, str, str, bool]]:
        """Return for each prompt a thought, a text, the calls in it, and whether the text ended by itself."""
        processor, samples, written = loaded.processor, chosen.numbers(len(queries)), []
        for query, ids in zip(
            queries, generate(loaded, prompts, chosen, stop_tokens(loaded), samples) if queries else [], strict=True
        ):
            plain = "", processor.decode(ids, skip_special_tokens=True)
            answer = read_answer(processor, ids, opened=query.opened) if query.chat else plain
            calls = language_rows.calls_json(read_calls(processor, ids, opened=query.opened)) if query.chat else "[]"
            written.append((*answer, calls, len(ids) < chosen.max_new_tokens))
        return written

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        """Return the prompt of a row; of a plain text, its first half, up to a space.

        Conversations with tools, thoughts or template arguments, which programs treat differently, are a DataError.
        """
        row = self._as_read(row, loaded.processor)
        shape = shape_of(row, answered=False)
        if self._is_chat(shape, loaded.processor):
            query, conversation = self.asked(row, loaded.processor, loaded.max_length), self._conversation(row)
            messages = [(message.role, message.text, message.thought, message.calls) for message in query.messages]
            other = any(
                role not in ("system", "user", "assistant") or thought or calls for role, _, thought, calls in messages
            )
            if other or conversation.tools or conversation.template_arguments:
                raise DataError("the conversation has tools, thoughts or template arguments.")
            return Prompt(query.ids, [{"role": role, "content": text} for role, text, _, _ in messages])
        text = read_text(row, shape)
        if shape == "text":
            half = text[: (len(text) + 1) // 2]
            text = half.rpartition(" ")[0] or half
        ids = prompt_tokens(loaded.processor, text, loaded.max_length)
        return Prompt(beginning_of(loaded.processor, ids) + ids, text=text)

    def decode_example(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        return pieces_of(features.inputs, processor)

    def _conversation(self, example: Example) -> Conversation:
        """Read a row as the conversation for the template (DataError: a part of it is not text)."""
        conversation = with_system(read_row(example), self.config.system)
        for number, message in enumerate(conversation.messages, 1):
            if message.media:
                raise DataError(
                    f"message {number} ({message.role}) has a part of type {message.media[0]!r}; task causal-lm reads "
                    "only text."
                )
        if self.config.thoughts == "remove":
            bare = tuple(replace(message, thought="") for message in conversation.messages)
            conversation = replace(conversation, messages=bare)
        own = {**self.config.chat_template_kwargs, **conversation.template_arguments}
        return replace(conversation, template_arguments=own)

    def _trained(self, conversation: Conversation) -> list[int]:
        """Return which messages are trained on, by number from 0."""
        numbers, messages = answers(conversation), conversation.messages
        if self.config.train_on == "completion":
            return [k for k in numbers if k >= conversation.prompt_length]
        if self.config.train_on == "last":
            return [k for k in numbers if k > language_rows.last_question(messages)]
        return numbers

    def _written(self, example: Example, processor: Any, part: int | None) -> tuple[Written, Conversation | None]:
        """Return a row, or one part of it, as text, and the conversation that the template renders."""
        example = self._as_read(example, processor)
        shape = shape_of(example)
        if self._is_chat(shape, processor):
            conversation = self._conversation(example)
            messages, given_messages = conversation.messages, conversation.prompt_length
            if self.config.train_on == "all":
                if any(message.role == "assistant" and not message.trains for message in messages):
                    raise DataError(
                        "a message has weight 0, which leaves it out of the loss, but task.train_on is all. Set "
                        "task.train_on to completion, or remove the weights from the data."
                    )
                text, _, ends = end_turn(processor, render(processor, conversation), messages[-1])
                return Written(text, [(0, len(text))], ends=ends), conversation
            if not any(message.role == "assistant" for message in messages[given_messages or 1 :]):
                where = "in its completion" if given_messages else "that answers something"
                raise DataError(f"the conversation has no assistant turn {where}; nothing to train on.")
            masked = self.config.thoughts == "mask"
            parts = write(processor, conversation, self._trained(conversation), mask_thoughts=masked)
            return parts[-1 if part is None else min(part, len(parts) - 1)], conversation
        if shape == "prompt":
            prompt = read_text(example, "prompt")
            text, start = prompt + read_text(example, "completion"), len(prompt)
        else:
            text, start = read_text(example, "text"), 0
        return Written(text, [(start, len(text))]), None

    def asked(
        self,
        example: Example,
        processor: Any,
        limit: int | None = None,
        *,
        anew: bool = False,
        calls: bool = False,
        part: int | None = None,
    ) -> Asked:
        """Return the prompt of a row; with `anew`, its last turn is answered again, and a text is continued."""
        example = self._as_read(example, processor)
        shape = shape_of(example, answered=False)
        if self._is_chat(shape, processor):
            return self._asked_in_chat(example, processor, limit, anew=anew, at_call=calls, part=part)
        text = read_text(example, shape)
        text = text if shape == "prompt" or anew else text[:LONG_TEXT]
        ids, reference = prompt_tokens(processor, text, limit), example.get("completion")
        if shape == "text" and not anew:
            half = (len(ids) + 1) // 2
            text, reference = processor.decode(ids[:half]), processor.decode(ids[half:]) or None
            ids = ids[:half]
        return Asked(beginning_of(processor, ids) + ids, text, reference)

    def _asked_in_chat(
        self, example: Example, processor: Any, limit: int | None, *, anew: bool, at_call: bool, part: int | None
    ) -> Asked:
        conversation = self._conversation(example)
        messages = conversation.messages
        if anew:
            upto, reference = language_rows.question_of(conversation), None
        else:
            trained = self._trained(conversation)
            lasts = [] if part is None else [x.last for x in write(processor, conversation, trained)][: part + 1]
            upto = language_rows.turn_asked(messages, trained, lasts, at_call=at_call)
            reference = language_rows.reference_of(processor, conversation, upto) if upto < len(messages) else None
        shown = [f"{message.role}: {message.text}" for message in messages[:upto]]
        prompt = messages[0].text if upto == 1 else "\n".join(shown)
        text = render(processor, conversation, upto=upto, prompt=True)
        ids = prompt_tokens(processor, text, limit)
        opened = bool(OPENED.search(text))
        due = () if reference is None else messages[upto].calls
        calls = language_rows.calls_json(due) if due or (conversation.tools and reference is not None) else None
        readable = not due or reads_calls(processor, conversation, upto)
        return Asked(ids, prompt, reference, True, opened, messages[:upto], calls, readable)

    def _as_read(self, example: Example, processor: Any) -> Example:
        """Return a row; without a chat template, a question with its answer as prompt and completion."""
        templated = self.config.chat_template == "auto" and has_template(processor)
        return example if templated else language_rows.as_text(example)

    def _is_chat(self, shape: str, processor: Any) -> bool:
        """Return whether a row of this shape is written in the chat template.

        RecipeError if it must be but cannot, or if there is no place for the system message.
        """
        if shape == "messages" and self.config.chat_template == "never":
            raise RecipeError(
                "task.chat_template is never, but the data has conversations. Set it to auto, or give `prompt` and "
                "`completion`."
            )
        if shape == "messages" and not has_template(processor):
            raise RecipeError(
                "the data has conversations, but this model's tokenizer has no chat template. Use a model that was "
                "tuned for chat, put a chat_template.jinja into the model's folder, or give `prompt` and `completion`."
            )
        chat = shape != "text" and self.config.chat_template == "auto" and has_template(processor)
        if self.config.system is not None and not chat:
            raise RecipeError(
                f"task.system is set, but rows of `{shape}` are read as plain text here, where a system message has "
                "no place. Leave task.system out, or give `messages` to a model with a chat template."
            )
        return chat
