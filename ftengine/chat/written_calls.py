"""Calls of tools that are written as text: as Hermes and Qwen write them, with their results."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from ftengine.api.conversation import ToolCall

_CALLS = re.compile(r"((?:<tool_call>(?:(?!</?tool_call>).)*</tool_call>\s*)+)$", re.DOTALL)
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_RESULT = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
_BETWEEN = re.compile(r"</tool_response>\s*<tool_response>")


_KEYS = {"name", "arguments", "parameters", "id", "type"}


def calls_in(content: str) -> tuple[str, tuple[ToolCall, ...]] | None:
    """Return the text before the calls at the end of a content, and the calls; None if it does not end with calls."""
    if "<tool_call>" not in content or (match := _CALLS.search(content)) is None:
        return None
    calls = tuple(call_of(text) for text in _CALL.findall(match[1]))
    return None if None in calls else (content[: match.start()].rstrip(), calls)  # type: ignore[return-value]


def call_of(text: str) -> ToolCall | None:
    """Return a call from its JSON, or from the Python literal that older data has; None if it is neither."""
    try:
        return _call(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        return _call(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, Mapping) or not {"name"} < value.keys() <= _KEYS:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(value["name"], str) or not isinstance(arguments, Mapping):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def result_in(content: str) -> str | None:
    """Return a tool's result without the surrounding <tool_response>; None if there is none."""
    return match[1] if (match := _RESULT.fullmatch(content)) else None


def results_in(content: str) -> int:
    """Return the number of results in a content: one message may hold several."""
    return 1 + len(_BETWEEN.findall(content))
