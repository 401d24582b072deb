"""Converting content blocks of Anthropic's and OpenAI's newer APIs into messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftengine.errors import DataError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a thought, as templates and servers call it."""
_KEYS = {
    "thinking": {"thinking", "signature"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "input_text": {"text"},
    "output_text": {"text", "annotations", "logprobs"},
    "refusal": {"refusal"},
}
"""Types of blocks that are read here, and what each holds beside its type."""
_OF = {"thinking": ("assistant",), "tool_use": ("assistant",), "tool_result": ("user", "tool")}
"""Whose messages have such a block."""
_DETAILS = {"thinking_blocks": ("thinking",), "reasoning_details": ("text", "summary")}
"""Keys of lists that repeat a thought for servers, and where it stands in an entry."""
ENCRYPTED = "reasoning.encrypted"
"""What is kept of such a list that has a thought which nobody can read."""
_ORDER = {"thinking": 0, "tool_use": 2, "tool_result": -1}
"""In which order chat templates write what a message has, text being 1, and results of tools messages before it."""
_CALLED = {-1: "the result of a tool", 0: "a thought", 1: "text", 2: "a call of a tool"}
_HARMONY = {"channel": "final", "recipient": "all"}
"""Keys of gpt-oss's messages, and what a message without them has."""


def unfolded(message: Any, number: int) -> list[Any]:
    """Convert a message with blocks into one or several messages in OpenAI's form; others are returned unchanged.

    Tool results become messages of their own, before the rest of the message.

    Raises:
        DataError: a block has an unknown key, blocks are in an order that templates cannot write, or the message is
            only a thought.
    """
    if not isinstance(message, Mapping):
        return [message]
    message = _one_thought(message, number)
    blocks, role = message.get("content"), message.get("role")
    if not isinstance(blocks, list) or not any(_kind(item, role) for item in blocks):
        return [message]
    _require_order(blocks, role, number)
    rest, calls, results, thoughts = list[Any](), list[Any](), list[Any](), list[str]()
    for block in blocks:
        kind = _kind(block, role)
        held = {key for key, value in block.items() if value is not None} if kind else set()
        if unknown := held - _KEYS.get(kind, set()) - {"type", "cache_control"}:
            raise DataError(
                f"message {number} ({role}) has a block of type {kind} with the key {unknown.pop()!r}, which is not "
                "read."
            )
        if kind == "thinking":
            thoughts.append(_thought(block.get("thinking") or "", number))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            result = {"tool_call_id": block.get("tool_use_id"), "is_error": block.get("is_error")}
            results.append({"role": "tool", "content": block.get("content"), **result})
        else:
            rest.append({"type": "text", "text": block.get("text", block.get("refusal"))} if kind else block)
    if thoughts and any(message.get(key) not in (None, "", "\n\n".join(thoughts)) for key in THOUGHTS):
        raise DataError(f"message {number} has a thought in a block and another beside `content`. Keep one of them.")
    fields = {"tool_calls": [*(message.get("tool_calls") or []), *calls], "reasoning_content": "\n\n".join(thoughts)}
    answer = {**message, "content": rest or None, **{key: value for key, value in fields.items() if value}}
    return [*results, *([answer] if rest or not results else [])]


def _require_order(blocks: Sequence[Any], role: Any, number: int) -> None:
    """Raise DataError if templates would write the blocks in another order."""
    highest = -1
    for block in blocks:
        rank = _ORDER.get(_kind(block, role), 1)
        if rank == 1 and isinstance(block, Mapping) and isinstance(text := block.get("text"), str) and not text.strip():
            continue
        if rank < highest:
            raise DataError(
                f"message {number} ({role}) has {_CALLED[rank]} after {_CALLED[highest]}, but chat templates "
                f"write it first. Move it to the front, or divide the message in two."
            )
        highest = rank


def _thought(text: Any, number: int) -> str:
    if not isinstance(text, str):
        raise DataError(f"message {number} has a thought that is {type(text).__name__} and not text: {text!r:.60}.")
    return text


def _kind(block: Any, role: Any) -> str:
    """Return a block's type if it is converted here; "" for an ordinary part."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    return kind if isinstance(kind, str) and kind in _KEYS and role in _OF.get(kind, (role,)) else ""


def _one_thought(message: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """Return a message without keys that repeat its thought, and without redundant keys of gpt-oss."""
    if message.get("channel") == "analysis":
        raise DataError(
            f"message {number} is of channel 'analysis', a thought alone. Give it as `thinking` of the message that it "
            "leads to."
        )
    usual = {key for key, value in _HARMONY.items() if message.get(key) == value}
    details = {key: message[key] for key in _DETAILS if isinstance(message.get(key), Sequence)}
    if not usual and not details:
        return message
    rest = {key: value for key, value in message.items() if key not in usual and key not in details}
    has_thought = any(message.get(key) for key in THOUGHTS)
    for key, entries in details.items():
        of = [item for item in entries if isinstance(item, Mapping)]
        texts = [next((item[name] for name in _DETAILS[key] if item.get(name)), "") for item in of]
        if not has_thought:
            rest["reasoning_content"] = rest.get("reasoning_content") or "\n\n".join(filter(None, texts))
        if any(item.get("type") == ENCRYPTED for item in of):
            rest[ENCRYPTED] = True
    return rest
