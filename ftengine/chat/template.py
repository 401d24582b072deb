"""Rendering conversations with a model's chat template, and finding out what it expects and leaves out."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from ftengine.api.conversation import Conversation, Message, ToolCall
from ftengine.chat.bounded import PATIENCE, ROOM, limited, refuse_powers
from ftengine.chat.content_blocks import THOUGHTS
from ftengine.chat.template_date import VARIABLE, writing_date
from ftengine.errors import DataError
from ftengine.model.tokens import Span

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def has_template(processor: Any) -> bool:
    """Return whether the processor has a chat template."""
    return bool(getattr(processor, "chat_template", None))


def render(processor: Any, conversation: Conversation, *, upto: int | None = None, prompt: bool = False) -> str:
    """Write a conversation as the model reads it; with `prompt`, up to where the assistant's reply begins.

    Args:
        upto: number of messages to write; None: all.

    Raises:
        DataError: the template refuses the conversation (roles that do not alternate, a system message, …), or leaves
            a message, a call or the tools out.
    """
    messages = conversation.messages[:upto]
    if number := _misplaced(processor, conversation):
        raise DataError(
            f"the model's chat template writes the thought of message {number} (assistant) after its answer or call. "
            "Set task.thoughts to remove, or use the template of the model's author."
        )
    if lost := _left_out(processor, conversation):
        writes = "Take a model whose template writes it (calls of tools: such as Qwen3's or Llama 3.1's), or write it"
        cure = "Give it the role system" if "(developer)" in lost else f"{writes} as text in `content`"
        raise DataError(f"the model's chat template leaves out {lost}. {cure}.")
    try:
        return _applied(processor, conversation, messages, _form(processor), prompt=prompt)
    except _REFUSALS as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}") from None


_REFUSALS = (TemplateError, ValueError, TypeError, ArithmeticError, RecursionError, LookupError)


def marks(processor: Any, conversation: Conversation, upto: int) -> list[Span] | None:
    """Return the spans marked with {% generation %} in the first messages; None if the template has no such marks."""
    template = processor.get_chat_template(tools=_tools_of(conversation))
    if not _GENERATION_BLOCK.search(template):
        return None
    with limited(), writing_date(processor, template):  # as long as it took to write it just now
        messages = conversation.messages[:upto]
        _, [marked] = _filled_in(processor, conversation, messages, _form(processor), return_assistant_tokens_mask=True)
    return [(start, end) for start, end in marked if end > start]


def _filled_in(
    processor: Any, conversation: Conversation, messages: Sequence[Message], form: _Form, **options: Any
) -> Any:
    """Render the template directly, since `apply_chat_template` would remove keys that are None."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = _tools_of(conversation)
    return render_jinja_template(
        [[form.message(message) for message in messages]],
        tools=tools,
        chat_template=processor.get_chat_template(tools=tools),
        **options,
        **{**processor.special_tokens_map, **conversation.template_arguments},
    )


class Unbounded(DataError):
    """A template exceeds its limit of time or memory."""


Kind = tuple[bool, int]
"""Of an assistant's message: whether it has text, and calls: 0, 1, or 2 for several."""

Place = Literal["field", "content", "", "misplaced"]


def _kind_of(message: Message, *, calls: bool) -> Kind:
    written = bool(message.written) and not calls
    return bool(message.text.strip()) or written, 0 if written else min(len(message.calls), 2)


@dataclass(frozen=True)
class _Form:
    """The form of messages that a template expects.

    Args:
        mapping: arguments of a call as a mapping; else as JSON text.
        thoughts: by kind of message (`_kind_of`), where it takes a thought from: "field", a field of its own;
            "content", in front of the text; "" if it writes none, or removes it and would leave its line breaks;
            "misplaced" if it writes the thought after the message.
        parts: it writes contents only as lists of parts, as those of vision-language models do.
        calls: it writes calls.
        blank: the content of a call's message without text: some templates ask whether it is none.
    """

    mapping: bool = True
    thoughts: Mapping[Kind, Place] = field(default_factory=dict)
    parts: bool = False
    calls: bool = True
    blank: str | None = ""

    def place_of(self, message: Message) -> Place:
        """Return the place from which the template reads a message's thought."""
        return self.thoughts.get(_kind_of(message, calls=self.calls), self.thoughts.get((True, 0), "field"))

    def message(self, message: Message) -> dict[str, Any]:
        """Return a message in the form that the template expects."""
        as_text = message.written and not self.calls
        written: Any = message.written if as_text else message.content
        content: Any = written if isinstance(written, str) else list(written)
        fields: dict[str, Any] = {"role": message.role}
        place = self.place_of(message) if message.thought else ""
        if place == "field":
            fields |= dict.fromkeys(THOUGHTS, message.thought)
        elif place == "content" and isinstance(content, str):
            content = f"<think>\n{message.thought}\n</think>\n\n{content}"
        fields["content"] = [{"type": "text", "text": content}] if self.parts and isinstance(content, str) else content
        if message.calls and not as_text:
            fields["content"] = fields["content"] if content else self.blank
            fields["tool_calls"] = [self._call(call) for call in message.calls]
        fields |= {key: value for key, value in (("name", message.name), ("tool_call_id", message.call_id)) if value}
        return fields

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = json.loads(call.arguments) if self.mapping else call.arguments
        named = {} if call.id is None else {"id": call.id}
        return {**named, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tools_of(conversation: Conversation) -> list[Any] | None:
    return json.loads(conversation.tools) if conversation.tools else None


def _applied(
    processor: Any, conversation: Conversation, messages: Sequence[Message], form: _Form, *, prompt: bool = False
) -> str:
    tools = _tools_of(conversation)
    if taken := set(conversation.template_arguments) & _taken(processor.apply_chat_template.__func__):
        raise DataError(f"`chat_template_kwargs` sets {taken.pop()!r}, which is no variable of a chat template.")
    template = processor.get_chat_template(tools=tools)
    refuse_powers(template)
    takes, cure = (
        f"the model's chat template takes more than {{}} for {len(messages)} messages",
        "Take the template from the model's author.",
    )
    try:
        with limited(), writing_date(processor, template):
            if form.blank is None:
                return _filled_in(processor, conversation, messages, form, add_generation_prompt=prompt)[0][0]
            return processor.apply_chat_template(
                [form.message(message) for message in messages],
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **conversation.template_arguments,
            )
    except TimeoutError:
        raise Unbounded(f"{takes.format(f'{PATIENCE} s')}: it loops. {cure}") from None
    except MemoryError:
        raise Unbounded(f"{takes.format(f'{ROOM >> 20} MiB of memory')}. {cure}") from None


@cache
def _taken(apply: Callable[..., Any]) -> frozenset[str]:
    """Return the names of template arguments that a row cannot set, since ftengine sets them."""
    return frozenset(inspect.signature(apply).parameters) - {"documents"} | {VARIABLE}


_KNOWN: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
"""For each tokenizer, what was found out about its templates."""


def remembered(processor: Any, key: Any, find: Callable[[], Any]) -> Any:
    """Return a cached fact about a tokenizer's template by its key; `find` computes it at the first call."""
    facts = _KNOWN.setdefault(processor, {})
    if (key := (str(processor.chat_template), key)) not in facts:
        facts[key] = find()
    return facts[key]


_ASKED = Message("user", "Zq")
_TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "ZqTool",
                "description": "Zq",
                "parameters": {"type": "object", "properties": {"Zq": {"type": "string", "description": "Zq"}}},
            },
        }
    ]
)


def _form(processor: Any) -> _Form:
    """Find out what a template expects, by rendering a text, a thought and a call."""

    def find() -> _Form:
        question = Conversation((_ASKED,))
        parts = "Zq" not in _try(processor, question, _Form()) and "Zq" in _try(processor, question, _Form(parts=True))
        form = _with_calls(processor, _Form(parts=parts))
        return replace(form, thoughts=_places_of_thoughts(processor, form))

    return remembered(processor, "form", find)


def _try(processor: Any, conversation: Conversation, form: _Form) -> str:
    """Render a conversation; "" if the template raises an error."""
    try:
        return _applied(processor, conversation, conversation.messages, form)
    except Unbounded:  # the next conversation would take as long
        raise
    except (*_REFUSALS, DataError):
        return ""


def _places_of_thoughts(processor: Any, form: _Form) -> dict[Kind, Place]:
    """Find out where a template reads the thought of each kind of message, by rendering one of each.

    A template that writes thoughts from a field uses its own tags for them, so thoughts are not put into the content
    with another model's tags.
    """
    kinds: list[Kind] = [(True, 0), *([(False, 1), (True, 1), (False, 2), (True, 2)] if form.calls else [])]
    fields = {kind: _place_of_thought(processor, form, kind, "field") for kind in kinds}
    if "field" in fields.values():
        return fields
    return {kind: _place_of_thought(processor, form, kind, "content") for kind in kinds}


def _place_of_thought(processor: Any, form: _Form, kind: Kind, place: Place) -> Place:
    """Return the place if a thought there is written, "" if it is not, "misplaced" if it follows the answer."""
    has_text, count = kind
    calls = [ToolCall("ZqTool", _ARGUMENTS, _ID), ToolCall("ZqNext", _ARGUMENTS, _ID)][:count]
    answer = Message("assistant", "ZqText" * has_text, thought="ZqThought", calls=tuple(calls))
    conversation = Conversation((_ASKED, answer), _TOOLS if calls else "")
    written = _try(processor, conversation, replace(form, thoughts={kind: place}))
    at = written.find("ZqThought")
    if at < 0:
        return ""
    about = [written.rfind(word) for word in ("ZqText" * has_text, *(call.name for call in calls)) if word]
    return place if at < min((n for n in about if n >= 0), default=at + 1) else "misplaced"


def _with_calls(processor: Any, form: _Form) -> _Form:
    """Find out whether a template writes calls, and which form of arguments and of empty content it expects.

    Arguments are passed as a mapping if the template then writes them as JSON or in its own form; as text if it refuses
    a mapping or writes it in Python's form.
    """
    call = Message("assistant", "", calls=(ToolCall("ZqTool", _ARGUMENTS, _ID),))
    result = Message("tool", "Zq", name="ZqTool", call_id=_ID)
    conversation = Conversation((_ASKED, call, result), _TOOLS)
    tried = [replace(form, mapping=mapping, blank=blank) for blank in ("", None) for mapping in (True, False)]
    written = [_try(processor, conversation, candidate) for candidate in tried]
    for fits in (
        lambda candidate, text: candidate.mapping and _JSON.search(text),
        lambda candidate, text: candidate.mapping and "ZqKey" in text and "ZqValue" in text and "'ZqKey'" not in text,
        lambda candidate, text: _JSON.search(text),
        lambda candidate, text: "ZqValue" in text,
    ):
        for candidate, text in zip(tried, written, strict=True):
            if fits(candidate, text):
                return candidate
    return replace(form, calls=False)


_JSON = re.compile(r'"ZqKey"\s*:\s*"ZqValue"')


@dataclass(frozen=True)
class CallForm:
    """How a template writes calls, if the name stands before the arguments.

    Args:
        begin: the text in front of the arguments of the first call, with the name as group 1.
        again: the text between the arguments of two calls, with the second's name as group 1; None: it writes only one.
        end: the text after the arguments of the last call, up to a token or tag.
        mark: the beginning of `begin`.
    """

    begin: re.Pattern[str]
    again: re.Pattern[str] | None
    end: re.Pattern[str]
    mark: str


def call_form(processor: Any) -> CallForm | None:
    """Return how a template writes calls; None if it writes none, arguments first, or plain JSON."""

    def find() -> CallForm | None:
        form, calls = _form(processor), [ToolCall("ZqTool", _ARGUMENTS, _ID), ToolCall("ZqNext", _ARGUMENTS, _ID)]
        single, double = (Conversation((_ASKED, Message("assistant", "", calls=tuple(calls[:n])))) for n in (1, 2))
        written, both = _try(processor, single, form), _try(processor, double, form)
        prompt = _applied(processor, single, single.messages[:1], form, prompt=True) if written else ""
        prompt = re.sub(r"<think>\s*$", "", prompt)
        before, _, after = behind(prompt, written).partition("ZqTool")
        between, _, rest = after.partition(_ARGUMENTS)
        begins = before.rpartition("</think>")[2].strip()
        if not rest or _ID in between or not begins or re.match(r"\[?\s*\{", begins):
            return None
        name = rf"([^\s\"'<>|{{}}()]+){_spaced(between)}(?={{)"
        again = both.partition("ZqTool")[2].partition(_ARGUMENTS)[2].partition("ZqNext")
        mark = re.match(r"<[^>]*>|\[[^\]]*\]|\S+", begins)
        return CallForm(
            re.compile(_spaced(begins) + r"\s*" * before[-1:].isspace() + name),
            re.compile(_spaced(again[0]) + name) if again[1] else None,
            re.compile(_spaced(rest.partition("<")[0].rstrip())),
            mark[0] if mark else begins,
        )

    form: CallForm | None = remembered(processor, "call form", find)
    return form


def behind(prompt: str, written: str) -> str:
    """Return the part of a text after its common prefix with a prompt."""
    shared = (n for n, (a, b) in enumerate(zip(prompt, written, strict=False)) if a != b)
    return written[next(shared, len(prompt)) :]


_ARGUMENTS, _ID = '{"ZqKey": "ZqValue"}', "ZqCall00x"


def _spaced(text: str) -> str:
    """Return a pattern for a text in which white space is optional and the call's id is arbitrary."""
    parts = (re.escape(part).replace(_ID, r"[^\s\"']*") for part in re.split(r"\s+", text))
    return r"\s*".join(parts)


def writes_tools(processor: Any, conversation: Conversation) -> bool:
    """Return whether the template writes a row's tools; some leave that to a system message."""
    return not conversation.tools or remembered(
        processor, "tools", lambda: "ZqTool" in _try(processor, Conversation((_ASKED,), _TOOLS), _form(processor))
    )


def _misplaced(processor: Any, conversation: Conversation) -> int:
    """Return the number of the first message whose thought the template writes behind its answer; 0: none."""
    form, messages = _form(processor), enumerate(conversation.messages, 1)
    return next((n for n, message in messages if message.thought and form.place_of(message) == "misplaced"), 0)


def _left_out(processor: Any, conversation: Conversation) -> str:
    """Describe what the template leaves out of a conversation of this shape; "" if it leaves out nothing.

    A test conversation with the same roles, calls and tools is rendered with a distinct word in each place. Thoughts
    and tools may be missing: they are counted elsewhere.
    """
    calls = [0 if m.written and not _form(processor).calls else len(m.calls) for m in conversation.messages]
    written = [bool(m.text.strip()) or len(m.calls) > n for m, n in zip(conversation.messages, calls, strict=True)]
    messages = zip(conversation.messages, written, calls, strict=True)
    shape = tuple((m.role, has_text, bool(m.thought), n) for m, has_text, n in messages)
    arguments = json.dumps(dict(conversation.template_arguments), sort_keys=True, default=str)
    return remembered(
        processor, (shape, bool(conversation.tools), arguments), lambda: _find_left_out(processor, conversation, shape)
    )


def _find_left_out(processor: Any, conversation: Conversation, shape: Sequence[tuple[str, bool, bool, int]]) -> str:
    expected, messages, open_calls = list[tuple[str, str]](), list[Message](), list[ToolCall]()
    for n, (role, has_text, has_thought, count) in enumerate(shape, 1):
        answered = open_calls.pop(0) if role == "tool" and open_calls else ToolCall("", "")
        text, thought = f"ZqText{n}x" * has_text, f"ZqThought{n}x" * has_thought
        expected += [(f"message {n} ({role})", text)]
        calls = []
        for i in range(1, count + 1):
            name, value = f"ZqName{n}x{i}x", f"ZqValue{n}x{i}x"
            calls.append(ToolCall(name, json.dumps({"ZqKey": value}), f"Zq{n:03}x{i:03}"))
            what = "the call" if count == 1 else f"call {i} of {count}"
            expected += [
                (f"{what} in message {n} (assistant)", name),
                (f"what message {n} (assistant) calls with", value),
            ]
        open_calls += calls
        messages.append(Message(role, text, thought, tuple(calls), name=answered.name, call_id=answered.id))
    same = Conversation(tuple(messages), _TOOLS if conversation.tools else "", conversation.template_arguments)
    written = _try(processor, same, _form(processor))
    return next((what for what, word in expected if word not in written), "") if written else ""
