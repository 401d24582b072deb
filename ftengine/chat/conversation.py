"""Reading conversations in OpenAI's and TRL's form into `ftengine.api.Conversation`.

Everything that is not understood raises a DataError with the message's number; nothing is silently dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ftengine.api.conversation import ROLES, Conversation, Message, ToolCall
from ftengine.chat.content_blocks import ENCRYPTED, THOUGHTS, unfolded
from ftengine.chat.written_calls import calls_in, result_in, results_in
from ftengine.errors import DataError, did_you_mean, shown

_KEYS = ("role", "content", "tool_calls", "tool_call_id", "function_call", "weight", "name", "refusal", *THOUGHTS)
_ABOUT = (
    *(
        "id",
        "uuid",
        "message_id",
        "parent_id",
        "index",
        "turn",
        "turn_identifier",
        "timestamp",
        "created",
        "created_at",
    ),
    *("date", "time", "user", "author", "source", "model", "language", "lang", "tokens", "token_count", "num_tokens"),
    *("score", "rating", "toxic", "toxicity", "redacted", "hashed_ip", "country", "header", "state", "status"),
    *("end_turn", "logprobs", "usage"),
    *("category", "moderation", "openai_moderation", "finish_reason", "stop_reason", "annotations", "metadata", "meta"),
)
"""Keys that tell of a message what no model reads."""
_OTHER_ROLES = {
    **dict.fromkeys(("human", "prompter", "customer"), "user"),
    **dict.fromkeys(("ai", "bot", "chatbot", "gpt", "model", "agent"), "assistant"),
    **dict.fromkeys(("observation", "tool_response"), "tool"),
}
_OTHER_KEYS = {
    **dict.fromkeys(("text", "value", "message", "body"), "content"),
    **dict.fromkeys(("thought", "thoughts", "reason", "reasoning_text"), THOUGHTS[0]),
    **dict.fromkeys(("calls", "functions", "function_calls"), "tool_calls"),
}
"""What others call roles and keys, for hints."""
_CALL_KEYS = ("id", "type", "index", "function", "name", "arguments", "parameters")
_PART_KEYS = ("type", "text", "cache_control", "annotations")
_THOUGHT = re.compile(
    r"\s*(?:<think>((?:(?!<think>).)*?)</think>|((?:(?!</?think>).)*?)(?<=\n)</think>|((?:(?!</?think>).)*?)</think>\s*?(?:\n|$))\s*",
    re.DOTALL,
)
"""A thought in front of an answer; where nothing opens it, what ends it begins or ends a line: else it is prose."""
_FREE = json.JSONDecoder()


def read_conversation(row: Mapping[str, Any]) -> Conversation:
    """Read a row's `messages`, or its `prompt` and `completion` (lists of messages, or texts).

    It also reads `tools` (a list, or its JSON text; OpenAI's older `functions`) and `chat_template_kwargs`.
    Without a completion, the conversation is one to be answered.

    Raises:
        DataError: a message is malformed; the error names it and its fault.
    """
    values, prompt_length = _listed(row)
    each = [unfolded(value, number) for number, value in enumerate(values, 1)]
    messages = [_message(item, number) for number, parts in enumerate(each, 1) for item in parts]
    prompt_length = sum(map(len, each[:prompt_length]))
    tools = _tools(row)
    _require_known(messages, tools)
    kwargs = row.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise DataError(f"`chat_template_kwargs` is {shown(kwargs)}; it must be a mapping, as {{enable_thinking: no}}.")
    return Conversation(tuple(_answered(messages)), _dumped(tools) if tools else "", dict(kwargs or {}), prompt_length)


def _listed(row: Mapping[str, Any]) -> tuple[Sequence[Any], int]:
    """Return a row's messages, and how many of them are the prompt."""
    if row.get("messages") is not None:
        return _list(row["messages"], "messages"), 0
    prompt, completion = row.get("prompt"), row.get("completion")
    if completion is not None and isinstance(prompt, str) != isinstance(completion, str):
        both = "give both as text, or both as lists of {role, content}"
        raise DataError(f"`prompt` is {shown(prompt)} and `completion` is {shown(completion)}; {both}.")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    prompt = _list(prompt, "prompt")
    return [*prompt, *([] if completion is None else _list(completion, "completion"))], len(prompt)


def _list(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(
            f"`{name}` is {shown(value)}; it must be a list of {{role, content}}.{_AS_TEXT * _is_json(value)}"
        )
    if not value and name != "completion":
        raise DataError(f"`{name}` is empty; a conversation has at least one message.")
    return value


_AS_TEXT = " It is a list as text; write the list itself."


def _is_json(value: Any) -> bool:
    """Return whether something is the text of a list or an object."""
    try:
        return isinstance(value, str) and isinstance(_FREE.decode(value), (list, dict))
    except ValueError:
        return False


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise DataError(f"message {number} is {shown(message)}; it must have `role` and `content`.")
    role = "tool" if message["role"] == "function" else message["role"]
    where = f"message {number} ({role})"
    if role not in ROLES:
        near = _near(role, ROLES, _OTHER_ROLES) if isinstance(role, str) else ""
        raise DataError(f"message {number} has role {shown(role)}. Allowed: {', '.join(ROLES)}.{near}")
    of_role = {"tool": "is_error", "assistant": ENCRYPTED}
    _require_keys(message, (*_KEYS, *_ABOUT, *filter(None, [of_role.get(role)])), where, _OTHER_KEYS)
    of_assistant = role == "assistant"
    calls = tuple(_calls(message, where)) if of_assistant else ()
    content = _content(message, where, empty=bool(calls) or role == "tool")
    thought, written = "", ""
    if of_assistant:
        thought, content = _thought(message, content, where, has_calls=bool(calls))
    if of_assistant and not calls and isinstance(content, str) and (extracted := calls_in(content)):
        written, (content, calls) = content, extracted
    elif role == "tool" and isinstance(content, str) and (result := result_in(content)) is not None:
        written, content = content, result
    name = message.get("name") if role == "tool" else None
    trains = _trains(message, where)
    unwritten = tuple(key for key in ("is_error", ENCRYPTED) if message.get(key))
    return Message(role, content, thought, calls, trains, name, message.get("tool_call_id"), written, unwritten)


def _require_keys(
    content: Mapping[str, Any], allowed: Sequence[str], where: str, others: Mapping[str, str] = MappingProxyType({})
) -> None:
    for key in (key for key, value in content.items() if value is not None and key not in allowed):
        missing = {word: name for word, name in others.items() if name not in content}
        raise DataError(
            f"{where} has the key {key!r}, which is not read.{_near(str(key), allowed, missing)} Remove it from the "
            "data if it is to make no difference."
        )


def _near(word: str, allowed: Sequence[str], others: Mapping[str, str]) -> str:
    """Return " Did you mean …?" with the standard name of a known synonym, else the most similar allowed word."""
    other = others.get(word.lower())
    return f" Did you mean {other!r}?" if other else did_you_mean(word, allowed)


def _thought(message: Mapping[str, Any], content: Any, where: str, *, has_calls: bool) -> tuple[str, Any]:
    """Return an assistant's thought, from any of the places for it, and the content without it."""
    fields = {key: message[key] for key in THOUGHTS if message.get(key)}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"{where} has {key} {shown(value)}; a thought must be text.")
    texts = {value.strip(): key for key, value in reversed(fields.items())}
    if isinstance(content, str) and "</think>" in content and (match := _THOUGHT.match(content)):
        if not content[match.end() :] and not has_calls:
            raise DataError(f"{where} has a thought without an answer. Add an answer, or remove the message.")
        content = content[match.end() :]
        thought = (match[1] or match[2] or match[3] or "").strip()
        texts |= {thought: "content, in front of </think>"} if thought not in texts else {}
    if len(texts := {text: key for text, key in texts.items() if text}) > 1:
        raise DataError(f"{where} has different thoughts in {' and in '.join(texts.values())}. Keep one of them.")
    return next(iter(texts), ""), content


def _trains(message: Mapping[str, Any], where: str) -> bool:
    weight = message.get("weight") if message["role"] == "assistant" else None
    if weight is not None and weight not in (0, 1):
        raise DataError(f"{where} has weight {shown(weight)}; it must be 0 (not trained on) or 1 (trained on).")
    return weight is None or bool(weight)


def _content(message: Mapping[str, Any], where: str, *, empty: bool) -> str | tuple[Mapping[str, Any], ...]:
    """Return text, or a list of parts if some are not text; several text parts are joined by line breaks."""
    content = message.get("content")
    if content is None and message.get("refusal") is not None:
        content = message["refusal"]
    if content is None and empty:
        return ""
    if isinstance(content, list) and all(isinstance(part, Mapping) and "type" in part for part in content):
        parts = tuple(content)
        for part in (part for part in parts if part["type"] == "text"):
            if not isinstance(part.get("text"), str):
                raise DataError(f"{where} has the part {shown(part)}; a part of type text has `text`.")
            _require_keys(part, _PART_KEYS, f"{where}, a part of type text,")
        if any(part["type"] != "text" for part in parts):
            return parts
        content = "\n".join(part["text"] for part in parts)
    if message["role"] in ("tool", "function") and content is not None and not isinstance(content, str):
        return _dumped(content)
    if not isinstance(content, str):
        raise DataError(f"{where} has content {shown(content)}; it must be text, or parts with a `type` each.")
    if not content.strip() and not empty and message["role"] not in ("system", "developer"):
        raise DataError(f"{where} has no text; leave it out or give it some.")
    return content


def _calls(message: Mapping[str, Any], where: str) -> Iterable[ToolCall]:
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [*calls, message["function_call"]]
    if not isinstance(calls, list):
        raise DataError(
            f"{where} has tool_calls {shown(calls)}; it must be a list of {{function: {{name, arguments}}}}."
        )
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where} calls {shown(call)}; a call is {{function: {{name, arguments}}}}.")
        _require_keys({**call, **function}, _CALL_KEYS, f"{where}, which calls {function['name']!r},")
        yield ToolCall(function["name"], _arguments(function, where), call.get("id"))


def _arguments(function: Mapping[str, Any], where: str) -> str:
    """Return arguments as JSON text, in one normal form."""
    value = function.get("arguments", function.get("parameters"))
    if isinstance(value, str):
        try:
            value = _FREE.decode(value) if value.strip() else {}
        except ValueError as error:
            name = function["name"]
            raise DataError(f"{where} calls {name!r} with arguments that are no JSON: {error}.") from None
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        twice = " They are JSON text within JSON text; take one away." if _is_json(value) else ""
        raise DataError(
            f"{where} calls {function['name']!r} with arguments {shown(value)}; they must be an object.{twice}"
        )
    return _dumped(value)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        raise DataError(f"{shown(value)} holds what JSON has no form for.") from None


def _tools(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the functions that a row offers, each as {"type": "function", "function": {…}}."""
    key = "tools" if row.get("tools") else "functions"
    value = row.get(key) or []
    if isinstance(value, str):
        try:
            value = _FREE.decode(value) if value.strip() else []
        except ValueError as error:
            raise DataError(f"`{key}` is text that is no JSON: {error}.") from None
    if not isinstance(value, list):
        raise DataError(f"`{key}` is {shown(value)}; it must be a list of {{type: function, function: {{name, …}}}}.")
    tools = list[Mapping[str, Any]]()
    for number, tool in enumerate(value, 1):
        if isinstance(tool, str):  # a list of JSON texts
            try:
                tool = _FREE.decode(tool)
            except ValueError as error:
                raise DataError(f"function {number} of `{key}` is text that is no JSON: {error}.") from None
        declaration = (
            tool if isinstance(tool, Mapping) and "function" in tool else {"type": "function", "function": tool}
        )
        function = declaration["function"]
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"function {number} of `{key}` is {shown(tool)}; it must have a `name`.")
        tools.append({"type": "function", **declaration})
    return tools


def _require_known(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError if a message calls a function that is not among the row's tools."""
    names = [tool["function"]["name"] for tool in tools]
    for number, message in enumerate(messages, 1):
        for call in message.calls:
            if names and call.name not in names:
                raise DataError(
                    f"message {number} (assistant) calls {call.name!r}, which is not among the row's tools: "
                    f"{', '.join(names)}.{did_you_mean(call.name, names)}"
                )


def _answered(messages: Sequence[Message]) -> Iterable[Message]:
    """Yield messages; a tool's result gets the name and id of the call that it answers.

    Raises:
        DataError: a result answers no call, or a call has no result and the conversation goes on.
    """
    open_calls: list[ToolCall] = []
    for number, message in enumerate(messages, 1):
        if message.role == "tool":
            call = _answered_call(message, open_calls, number)
            del open_calls[: results_in(message.text) - 1]
            yield replace(message, name=message.name or call.name, call_id=call.id)
            continue
        if open_calls and not message.calls:
            names = ", ".join(call.name for call in open_calls)
            raise DataError(
                f"message {number} ({message.role}) stands where the result of {names} is expected. "
                "Add the result as a message of role tool."
            )
        open_calls += message.calls
        yield message


def _answered_call(message: Message, open_calls: list[ToolCall], number: int) -> ToolCall:
    """Remove and return the open call that a result answers: by id, else by name, else the first."""
    by_id = message.call_id is not None and any(call.id is not None for call in open_calls)
    for call in open_calls:
        if message.name in (None, call.name) and (not by_id or call.id == message.call_id):
            open_calls.remove(call)
            return call
    named = {"tool_call_id": message.call_id if by_id or not open_calls else None, "name": message.name}
    named_by = " and ".join(f"its {key} is {value!r}" for key, value in named.items() if value is not None)
    open_names = ", ".join(call.name if call.id is None else f"{call.name} (id {call.id!r})" for call in open_calls)
    wrong = f"message {number} (tool) is the result of no call before it{f' ({named_by})' if named_by else ''}"
    raise DataError(f"{wrong}. Calls without a result there: {open_names or 'none'}.")


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """Put a system message in front, unless the conversation has one."""
    if system is None or conversation.messages[0].role in ("system", "developer"):
        return conversation
    prompt_length = conversation.prompt_length + 1 if conversation.prompt_length else 0
    return replace(
        conversation, messages=(Message("system", system), *conversation.messages), prompt_length=prompt_length
    )
