"""The three shapes of row that a language model learns from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ftengine.api import Conversation, Example, Message, Recognised, ToolCall, View
from ftengine.chat import read_answer, read_conversation
from ftengine.chat.turns import turn
from ftengine.errors import DataError, column_names, did_you_mean, shown
from ftengine.model.tokens import prompt_tokens
from ftengine.text import comparable
from ftengine_builtins.layouts import COLUMNS, PREFERENCES, is_question, normal, recognised
from ftengine_builtins.preference_layouts import columns_of
from ftengine_builtins.tasks.recognising import LABELS, first_of, renamed
from ftengine_builtins.unpaired_layouts import are_unpaired

SHAPES = "`messages` (a list of {role, content}), or `prompt` and `completion` (texts or such lists), or `text`"
ASKED = "a `prompt`, or `messages` (a list of {role, content}), or `text`, to be answered"
Shape = Literal["messages", "prompt", "text"]
_SHAPES = (("messages",), ("prompt", "completion"), ("text",))

_OTHER_NAMES = {
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat"),
    "prompt": ("question", "instruction", "input", "query", "source", "frage", "anweisung"),
    "completion": ("answer", "response", "output", "reply", "target", "summary", "translation", "chosen", "antwort"),
    "text": ("content", "document", "body", "sentence"),
}

_LAYOUTS = (*({column} for column in COLUMNS), {"instruction", "output"}, {"query", "response"})
"""Columns of conversations, whatever their layout, and of Alpaca's and ms-swift's questions with answers."""

_READ = {
    "alpaca": {"prompt": "instruction", "query": "input", "completion": "output", "system": "system"},
    "ms-swift": {"prompt": "query", "completion": "response", "system": "system"},
    "trl": {"prompt": "prompt", "completion": "completion"},
}
"""Columns that a layout of questions and answers reads, by field."""

_CHANGED = (("source", "target"), ("document", "summary"), ("article", "highlights"), ("text", "summary"))
"""Names of a text and of what it is turned into: a translation, a summary."""
_PROMPT_PARTS = frozenset({*_OTHER_NAMES["prompt"], "context", "passage", "system"})
"""Columns that hold a part of what is asked, where another column is taken as the prompt."""

_LANGUAGES = re.compile(
    "arabic|chinese|czech|danish|dutch|english|finnish|french|german|greek|hebrew|hindi|hungarian|indonesian|italian|"
    "japanese|korean|norwegian|persian|polish|portuguese|romanian|russian|spanish|swedish|thai|turkish|ukrainian|"
    "vietnamese|ar|cs|da|de|el|en|es|fa|fi|fr|he|hi|hu|it|ja|ko|nl|pl|pt|ro|ru|sv|th|tr|uk|vi|zh",
    re.IGNORECASE,
)
"""Names of columns of a text and its translation; "id" and "no", which mostly number rows, are left out."""


def check_columns(columns: Sequence[str], *, pairs: bool = False) -> None:
    """Refuse data that has none of the shapes or, with `pairs`, no prompts and completions (DataError)."""
    layouts = [{"prompt", "completion"}] if pairs else [{"prompt", "completion"}, {"text"}, *_LAYOUTS]
    if any(names <= set(columns) for names in layouts):
        return
    expected = f"a language model needs {SHAPES}"
    if pairs:
        expected = "a model that turns one text into another needs `prompt` and `completion`"
    raise DataError(
        f"the data has columns {column_names(columns) or '(none)'}; {expected}. "
        f"Rename columns with data.columns, e.g. {_renaming(columns, _SHAPES[1:2] if pairs else _SHAPES)}"
    )


def _renaming(columns: Sequence[str], shapes: Sequence[tuple[str, ...]]) -> str:
    """Return a plausible renaming of columns, and a part of the prompt that should be joined to it."""
    renamed = _guessed(columns, shapes)
    hint = f"{{{', '.join(f'{name}: {column}' for name, column in renamed.items() if name != column)}}}."
    note, ignored = _unread(columns, renamed)
    rest = [column for column in columns if column not in {*renamed.values(), *ignored}]
    hint += f" {note}" if note else ""
    return f"{hint} Columns that are then not read: {', '.join(rest)}." if rest else hint


def _unread(columns: Sequence[str], read: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return sentences on unread columns that seem to matter, and those columns; `read` is by field."""
    rest = [column for column in columns if column not in read.values()]
    parts = [column for column in rest if column.lower() in _PROMPT_PARTS]
    notes, ignored = [], list[str]()
    if "prompt" in read and parts:
        joined = "\\n\\n".join(f"{{row[{name!r}]}}" for name in (read["prompt"], *parts))
        notes.append(
            f"{' and '.join(map(repr, parts))} {'is' if len(parts) == 1 else 'are'} not read: write all parts of "
            f"the prompt into one column first, in Python row['prompt'] = f\"{joined}\"."
        )
        ignored += parts
    if (rejected := first_of(["rejected"], rest)) and first_of(["chosen"], columns):
        notes.append(f"Column {rejected!r} is not used in training; task preference learns from both answers.")
        ignored.append(rejected)
    return " ".join(notes), ignored


def _translated(columns: Sequence[str]) -> dict[str, str]:
    """Return the first two columns named after languages, as prompt and completion; {} if there are fewer."""
    named = [column for column in columns if _LANGUAGES.fullmatch(column)]
    return {"prompt": named[0], "completion": named[1]} if len(named) > 1 else {}


def _guessed(columns: Sequence[str], shapes: Sequence[tuple[str, ...]]) -> dict[str, str]:
    if translated := _translated(columns):
        return translated
    by_name = _called(columns)
    if (preferred := first_of(["chosen"], columns)) and not by_name["prompt"]:
        by_name["messages"] = by_name["messages"] or preferred  # preferences without a prompt are whole conversations
    for shape in shapes:
        if all(by_name[name] for name in shape):
            return {name: str(by_name[name]) for name in shape}
    texts = [column for column in columns if column.lower() not in LABELS]
    return dict(zip(shapes[-1], [*texts, "COLUMN", "COLUMN"], strict=False))


def _called(columns: Sequence[str]) -> dict[str, str | None]:
    """Return the column of each field, by its name or a synonym; None if there is none."""
    return {ours: first_of((ours, *theirs), columns) for ours, theirs in _OTHER_NAMES.items()}


def recognise(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise conversations, prompts with completions, or texts, also under other column names.

    Pairs of answers, and answers marked good or bad, belong to other tasks.
    """
    guess = _recognised(columns, rows)
    others = columns_of(columns) is not None or are_unpaired(columns, rows)
    return replace(guess, certainty=1) if guess is not None and others else guess


def _recognised(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    layouts = dict.fromkeys(name for row in rows if (name := recognised(row)[0]))
    if layouts and not first_of(PREFERENCES, columns):
        read = _READ.get(" and ".join(layouts), {})
        note, _ = _unread(columns, read if read.get("prompt") in columns else {})
        return Recognised(3, layout=" and ".join(layouts), note=note)
    messages, prompt, completion, text = _called(columns).values()
    preferred = first_of(["chosen"], columns)
    for column in (messages, preferred):
        if column and rows and all(_is_conversation(row.get(column)) for row in rows if row.get(column)):
            if column == preferred and all(isinstance(row.get(prompt or ""), list) for row in rows):
                continue  # prompt and completion are lists of messages
            note, _ = _unread(columns, {"messages": column})
            return Recognised(3, renamed(messages=column), note=note)
    if prompt and completion:
        note, _ = _unread(columns, {"prompt": prompt, "completion": completion})
        return Recognised(2, renamed(prompt=prompt, completion=completion), note=note)
    return Recognised(1, renamed(text=text)) if text else None


def recognise_pairs(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """Recognise pairs of input and output text, by the columns' names or as prompt and completion."""
    for names in _CHANGED:
        prompt, completion = (first_of([name], columns) for name in names)
        if prompt and completion:
            return Recognised(3, renamed(prompt=prompt, completion=completion))
    if translated := _translated(columns):
        return Recognised(3, translated)
    guess = recognise([column for column in columns if column.lower() not in _OTHER_NAMES["messages"]], ())
    return replace(guess, certainty=1) if guess is not None and guess.certainty == 2 else None


def _is_conversation(value: Any) -> bool:
    several = isinstance(value, (list, tuple))
    return several and all(isinstance(m, Mapping) and ("content" in m or {"from", "value"} <= m.keys()) for m in value)


def shape_of(example: Example, *, answered: bool = True) -> Shape:
    """Return the shape of a row, or raise DataError; a prompt needs its completion if `answered`.

    A field that is None counts as missing. Messages come before prompt and completion, and text comes last.
    """
    example = normal(example)
    has = {name for name in _OTHER_NAMES if example.get(name) is not None}
    if "messages" in has or (
        isinstance(example.get("prompt"), list) and isinstance(example.get("completion") or [], list)
    ):
        return "messages"
    if {"prompt", "completion"} <= has or ("prompt" in has and not answered):
        return "prompt"
    if "text" in has:
        return "text"
    if half := has & {"prompt", "completion"}:
        missing = ({"prompt", "completion"} - half).pop()
        raise DataError(f"the row has `{half.pop()}` but no `{missing}`; both are needed.")
    if column := next((name for name in COLUMNS if isinstance(example.get(name), str)), None):
        raise DataError(
            f"`{column}` is {shown(example[column])}; it must be a list of messages. Save the rows as .jsonl, with the "
            "list itself."
        )
    keys = [str(key) for key, value in example.items() if value is not None]
    near = next((hint for key in keys if (hint := did_you_mean(key, (*_OTHER_NAMES, *COLUMNS)))), "")
    present = f" It has: {', '.join(keys)}.{near}" if keys else ""
    raise DataError(
        f"the row holds none of `prompt`, `messages` and `text`; it needs {SHAPES if answered else ASKED}.{present}"
    )


def read_text(example: Example, name: str) -> str:
    """Return a field that must hold some text (DataError: it is missing, no text, or empty)."""
    value = example.get(name)
    other = {"prompt": "completion", "completion": "prompt"}.get(name, "")
    if isinstance(value, (list, tuple)) and isinstance(example.get(other), str):
        advice = "give both as text, or both as lists of {role, content}"
        raise DataError(f"`{name}` is {shown(value)} but `{other}` is text; {advice}.")
    if not isinstance(value, str):
        raise DataError(f"`{name}` is {shown(value)}; it must be text.")
    if not comparable(value).strip():
        problem = "holds only invisible characters" if value.strip() else "is empty"
        raise DataError(f"`{name}` {problem}; it must hold some text.")
    return value


def read_row(example: Example) -> Conversation:
    """Return a row as a conversation, whatever its layout; a prompt without completion has one message."""
    example = normal(example)
    if example.get("messages") is None:
        for name in ("prompt", "completion"):
            if isinstance(example.get(name), str):
                read_text(example, name)
    return read_conversation(example)


def as_text(example: Example) -> Example:
    """Return an Alpaca or ms-swift row as plain prompt, which ends with a line break, and completion."""
    if not is_question(example):
        return example
    question, *answer = read_row(example).messages
    return {"prompt": f"{question.text}\n", **({"completion": answer[0].text} if answer else {})}


def view(row: Example, *, all_trained: bool) -> View:
    """Return all turns but the assistant's, the prompt, or the text as inputs; none if the row cannot be read.

    The target is the trained part of the assistant's turns, the completion, or the text; with `all_trained`,
    everything. Other content of a row does not matter for duplicates. Never raises.
    """
    try:
        shape = shape_of(row)
        if shape == "messages":
            return _of_conversation(read_row(row), all_trained=all_trained)
        names = ("prompt", "completion") if shape == "prompt" else ("text",)
        values = [row[name] for name in names]
        inputs, target = [read_text(row, shape)], values if all_trained else values[-1]
        return View(inputs, target, texts=[text for text in values if isinstance(text, str)], identity=values)
    except DataError:
        return _unreadable(row)


def _of_conversation(conversation: Conversation, *, all_trained: bool) -> View:
    messages = conversation.messages
    identity: list[Any] = [[message.role, _content(message)] for message in messages]
    identity += [conversation.tools] if conversation.tools else []
    calls = ["\n".join(f"{call.name} {call.arguments}" for call in m.calls) for m in messages]
    texts = [text for m, of in zip(messages, calls, strict=True) for text in (m.thought, m.text, of) if text]
    target = [_content(message) for message in messages if message.role == "assistant" and message.trains]
    inputs = [messages[i].content for i in _asking(conversation)]
    return View(inputs, identity if all_trained else target, texts=texts, identity=identity)


def _content(message: Message) -> Any:
    """Return the content of a message as a JSON value; its text if it is plain."""
    content = message.content if isinstance(message.content, str) else list(map(dict, message.content))
    calls = [[call.name, call.arguments] for call in message.calls]
    return [message.thought, content, calls] if message.thought or calls else content


def _asking(conversation: Conversation) -> list[int]:
    """Return the messages that are inputs: texts that the assistant did not write."""
    return [
        i
        for i, message in enumerate(conversation.messages)
        if message.role != "assistant" and isinstance(message.content, str) and message.content.strip()
    ]


def _unreadable(row: Example) -> View:
    """Return the view of a row that will be refused."""
    messages = row.get("messages")
    if not isinstance(messages, (list, tuple)):
        return unreadable(row)
    turns = [[m.get("role"), m["content"]] if isinstance(m, dict) and "content" in m else m for m in messages]
    texts = [m.get("content") for m in messages if isinstance(m, dict)]
    return View([], None, texts=[text for text in texts if isinstance(text, str)], identity=turns)


def unreadable(row: Example) -> View:
    """Return a view without inputs for a row that will be refused; its identity is all of its values."""
    texts = {key: str(value) for key, value in row.items() if value is not None}
    return View([], None, texts=list(texts.values()), identity=list(texts.items()))


def with_inputs(example: Example, inputs: Sequence[str]) -> Example:
    """Return the row with other inputs in place of those that `view` gives (DataError: the row cannot be read)."""
    shape = shape_of(example)
    if shape != "messages":
        read_text(example, shape)
        [text] = inputs
        return {**example, shape: text}
    conversation, example = read_row(example), normal(example)
    prompt_length = conversation.prompt_length
    names = ("prompt", "completion") if prompt_length else ("messages",)
    messages = [message for name in names for message in example.get(name) or ()]
    for i, text in zip(_asking(conversation), inputs, strict=True):
        messages[i] = {**messages[i], "content": text}
    parts = (messages[:prompt_length], messages[prompt_length:]) if prompt_length else (messages,)
    return {**example, **dict(zip(names, parts, strict=True))}


@dataclass(frozen=True)
class Asked:
    """A question to a model.

    Args:
        ids, prompt: the prompt's tokens, from `prompt_tokens`, and its text.
        reference: the row's answer; None if it has none.
        chat, opened: whether the prompt is in the chat template, and whether it already begins the answer's thought.
        messages: in a chat, the messages before the answer.
        calls: tool calls of the row's answer, from `calls_json`; None if the row has no tools.
        readable: whether calls in the form of the chat template can be read.
    """

    ids: list[int]
    prompt: str
    reference: str | None
    chat: bool = False
    opened: bool = False
    messages: tuple[Message, ...] = ()
    calls: str | None = None
    readable: bool = True

    def answered(self, text: str, calls: str) -> dict[str, Any]:
        """Return the prompt, the answer with its text and calls, and the reference."""
        columns = {"prompt": self.prompt, "reference": self.reference, "reference_calls": self.calls}
        return {**columns, "completion": text, "calls": calls if self.readable else None}


def reference_of(processor: Any, conversation: Conversation, k: int) -> str:
    """Return the answer to message k: its text, and calls as the template writes them."""
    if not conversation.messages[k].calls:
        return conversation.messages[k].text
    served = turn(processor, conversation, k)
    ids = prompt_tokens(processor, served.text[served.start : served.end], None)
    return read_answer(processor, ids, opened=served.opened)[1]


def calls_json(calls: Sequence[ToolCall]) -> str:
    """Return calls as a JSON list of {"name", "arguments"}."""
    return json.dumps([{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls])


def question_of(conversation: Conversation) -> int:
    """Return the number of messages before the assistant's last turn, which is answered anew."""
    messages = conversation.messages
    upto = len(messages) - (messages[-1].role == "assistant")
    if not any(message.role == "user" for message in messages[:upto]):
        raise DataError("the conversation holds no user turn to answer.")
    return upto


def turn_asked(
    messages: Sequence[Message], trained: Sequence[int], lasts: Sequence[int | None], *, at_call: bool
) -> int:
    """Return the message to answer: the last that is trained on; the number of messages if none is.

    Args:
        trained: by number, the trained messages; if empty, all turns of the assistant.
        lasts: the number of the last message of each example of the conversation, up to this example.
        at_call: prefer the last message that calls tools.
    """
    turns = list(trained) or [k for k, message in enumerate(messages) if k and message.role == "assistant"]
    before, last = [-1, *(k for k in lasts if k is not None)][-2:] if any(lasts) else (-1, len(messages))
    turns = [k for k in turns if before < k <= last]
    called = [k for k in turns if messages[k].calls] if at_call else []
    return (called or turns or [len(messages)])[-1]


def last_question(messages: Sequence[Message]) -> int:
    """Return the number, from 0, of the user's last message."""
    return max((k for k, message in enumerate(messages) if message.role == "user"), default=0)


def why_untrained(conversation: Conversation, *, last: bool) -> str:
    """Return why no message of a conversation is trained on; `last`: task.train_on is last."""
    if last and conversation.messages[-1].role == "user":
        return "the user's message is the last, but task.train_on is last"
    return "every assistant turn has weight 0"


def beginning_of(processor: Any, ids: list[int]) -> list[int]:
    """Return the BOS that the tokenizer puts in front of text, unless the text begins with it."""
    bos = processor.bos_token_id
    if bos is None or ids[:1] == [bos]:
        return []
    return [bos] if processor("")["input_ids"][:1] == [bos] else []
