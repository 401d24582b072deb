"""Layouts of chat data: converting other tools' rows to rows with `messages`, as OpenAI and TRL have them.

A layout is a function that replaces the columns that it reads by `messages`. A row in no known layout is returned
unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ftengine.api import Example
from ftengine.chat.content_blocks import THOUGHTS
from ftengine.errors import DataError, did_you_mean, shown

CALL = "call"
"""What stands for a role whose content is the JSON text of a call."""
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "tool_response", "function_response", "function"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
    **{role: role for role in ("system", "developer")},
}
"""Roles as ShareGPT, LlamaFactory, ms-swift and Axolotl call them."""
WEIGHTS = ("loss", "loss_scale", "train", "training")
"""Keys by which ms-swift and Axolotl say whether a message trains."""
COLUMNS = ("messages", "conversations", "conversation")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of pictures, films and sounds beside a conversation."""
PREFERENCES = (
    "chosen",
    "rejected",
    "rejected_response",
    "rejected_messages",
    "preferred_output",
    "non_preferred_output",
)


def conversations(
    row: Example,
    *,
    column: str = "messages",
    role: str = "role",
    content: str = "content",
    roles: Mapping[str, str] = ROLES,
    system: str = "system",
    tools: str = "tools",
) -> dict[str, Any]:
    """Read a list of messages with other keys and roles, with optional columns `system` and `tools`."""
    if not isinstance(row.get(column), list):
        given = row.get(column)
        as_text = isinstance(given, str) and given.lstrip().startswith("[{")
        cure = " It is a list as text: save the rows as .jsonl, with the list itself." if as_text else ""
        raise DataError(f"`{column}` is {shown(given)}; it must be a list of {{{role}, {content}}}.{cure}")
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(row[column], 1):
        if not isinstance(message, Mapping) or role not in message:
            raise DataError(f"message {number} is {shown(message)}; it must have `{role}` and `{content}`.")
        named = message[role]
        if not isinstance(named, str) or named not in roles:
            near = did_you_mean(str(named), roles)
            raise DataError(f"message {number} has `{role}` {shown(named)}. Allowed: {', '.join(roles)}.{near}")
        if not message.keys() & {content, "tool_calls", "function_call", "refusal"}:
            near = next((hint for key in message if (hint := did_you_mean(str(key), (content,)))), "")
            raise DataError(f"message {number} has no `{content}`. It has: {', '.join(map(str, message))}.{near}")
        rest = {key: value for key, value in message.items() if key not in (role, content, *WEIGHTS)}
        rest |= {"content": message[content]} if content in message else {}
        rest |= _weight(message, number)
        if roles[named] == CALL:
            _add_calls(messages, message.get(content), number, rest)
        else:
            messages.append({"role": roles[named], **rest})
    return _with_messages(row, messages, (column, system, tools), row.get(system), row.get(tools))


def _weight(message: Mapping[str, Any], number: int) -> dict[str, int]:
    for key in (key for key in WEIGHTS if message.get(key) is not None):
        if message[key] not in (0, 1):
            allowed = "0 or 1, as a message trains or does not" if key == "loss_scale" else "true or false"
            raise DataError(f"message {number} has {key} {shown(message[key])}; it must be {allowed}.")
        return {"weight": int(message[key])}
    return {}


def _add_calls(messages: list[dict[str, Any]], content: Any, number: int, rest: Mapping[str, Any]) -> None:
    """Add calls to the assistant's message right before, or make one of them: some layouts have a message a call."""
    try:
        parsed = json.loads(content) if isinstance(content, str) else content
    except ValueError as error:
        raise DataError(f"message {number} is a call that is no JSON: {error}.") from None
    calls = [{"function": call} for call in (parsed if isinstance(parsed, list) else [parsed])]
    if messages and messages[-1]["role"] == "assistant":
        if rest.get("weight", 1) != messages[-1].get("weight", 1):
            wrong = f"message {number} is a call, and only one of it and what the assistant says right before trains"
            raise DataError(f"{wrong}; they are one message. Give both the same {', '.join(WEIGHTS)} or weight.")
        own = {key: value for key, value in rest.items() if key != "content" and value is not None}
        if both := [
            key for key in THOUGHTS if messages[-1].get(key, own.get(key)) != own.get(key, messages[-1].get(key))
        ]:
            wrong = (
                f"message {number} is a call with {both[0]} of its own, and so has what the assistant says right before"
            )
            raise DataError(f"{wrong}; they are one message. Leave one of them out.")
        messages[-1] = {**own, **messages[-1]}
        messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", ()), *calls]
    else:
        kept = {key: value for key, value in rest.items() if key != "content"}
        messages.append({"role": "assistant", "content": None, **kept, "tool_calls": calls})


def _with_messages(
    row: Example, messages: list[dict[str, Any]], read: Sequence[str], system: Any, tools: Any = None
) -> dict[str, Any]:
    if system is not None and not isinstance(system, (str, list)):
        raise DataError(f"the row has the system message {shown(system)} beside its messages; it must be text.")
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    if system and first.get("role") not in ("system", "developer"):
        messages = [{"role": "system", "content": system}, *messages]
    elif system and first.get("content") != system:
        wrong = f"the row has the system message {shown(system)} beside its messages"
        raise DataError(f"{wrong}, which begin with another, {shown(first.get('content'))}. Leave one of them out.")
    rest = {key: value for key, value in row.items() if key not in read}
    return {**rest, "messages": messages, **({"tools": tools} if tools else {})}


def pairs(
    row: Example,
    *,
    prompt: str = "instruction",
    query: str = "input",
    response: str = "output",
    system: str = "system",
    history: str = "history",
    tools: str = "tools",
) -> dict[str, Any]:
    """Read a question, in one or two columns, and its answer; `history` has earlier pairs, [[question, answer], …].

    The second column is written on a line of its own, as LlamaFactory and ms-swift do.
    """
    earlier = row.get(history) or []
    if not isinstance(earlier, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in earlier):
        raise DataError(f"`{history}` is {shown(earlier)}; it must be a list of [question, answer].")
    parts = [row.get(name) for name in (prompt, query)]
    if not all(part is None or isinstance(part, str) for part in parts) or not any(parts):
        raise DataError(f"`{prompt or query}` is {shown(row.get(prompt or query))}; it must be text.")
    asked = [*earlier, ["\n".join(part for part in parts if part), row.get(response)]]
    messages = [
        {"role": role, "content": text}
        for pair in asked
        for role, text in zip(("user", "assistant"), pair, strict=True)
        if role == "user" or text is not None
    ]
    return _with_messages(
        row, messages, (prompt, query, response, system, history, tools), row.get(system), row.get(tools)
    )


def human_assistant(row: Example) -> dict[str, Any]:
    """Read `conversation: [{human, assistant}]`, which ms-swift documents."""
    messages = []
    for number, turn in enumerate(row["conversation"], 1):
        if not isinstance(turn, Mapping) or not {"human", "assistant"} <= turn.keys():
            raise DataError(f"entry {number} of `conversation` is {shown(turn)}; it must have `human` and `assistant`.")
        messages += [
            {"role": role, "content": turn[key]} for role, key in (("user", "human"), ("assistant", "assistant"))
        ]
    return _with_messages(row, messages, ("conversation", "system"), row.get("system"))


sharegpt = partial(conversations, column="conversations", role="from", content="value")
query_response = partial(pairs, prompt="query", query="", response="response")


def is_question(row: Example) -> bool:
    """Return whether a row is one question with its answer, without history, system message or tools."""
    other = any(row.get(key) for key in ("history", "system", "tools"))
    return not other and recognised(row)[1] in (pairs, query_response)


def recognised(row: Example) -> tuple[str, Callable[[Example], Example]]:
    """Return the name of a row's layout ("" for none), and the function that reads it."""
    for column in COLUMNS:
        messages = row.get(column)
        if isinstance(messages, list) and messages:
            return _of_messages(row, column, [message for message in messages if isinstance(message, Mapping)])
    if row.get("prompt") is not None or row.get("completion") is not None:
        return ("trl" if isinstance(row.get("prompt"), list) else ""), dict
    if row.get("instruction") is not None and "output" in row:
        return "alpaca", pairs
    if row.get("query") is not None and ("response" in row or "history" in row):
        return "ms-swift", query_response
    return "", dict


def _of_messages(
    row: Example, column: str, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, Callable[[Example], Example]]:
    keys = {key for message in messages for key, value in message.items() if value is not None}
    roles = {message.get("role") for message in messages if isinstance(message.get("role"), str)}
    if {"from", "value"} <= keys and "role" not in keys:
        return "sharegpt", partial(sharegpt, column=column)
    if {"human", "assistant"} <= keys and "role" not in keys:
        return "ms-swift", human_assistant
    if roles & {"tool_call", "tool_response"} or keys & {"loss", "loss_scale"}:
        return "ms-swift", partial(conversations, column=column)
    if keys & {"train", "training"}:
        return "axolotl", partial(conversations, column=column)
    name = (
        "openai" if keys & {"weight", "function_call"} or row.get("functions") or "developer" in roles else "messages"
    )
    return name, partial(_moved, column)


def _moved(column: str, row: Example) -> dict[str, Any]:
    return _with_messages(row, row[column], (column, "system"), row.get("system"))


def require_text(row: Example, columns: Sequence[str] = MEDIA) -> None:
    """Refuse a conversation with images, videos or audio in further columns (DataError)."""
    for column in columns:
        if row.get(column):
            wrong = f"the row has `{column}`, {shown(row[column])}, beside its conversation; text alone is read"
            raise DataError(f"{wrong}. Take the column out if it is to make no difference.")


def normal(row: Example) -> Example:
    """Convert a row in any known layout to one with `messages`.

    Raises:
        DataError: the row is malformed, or has content other than text.
    """
    name, convert = recognised(row)
    if name:
        require_text(row)
    return convert(row)
