"""Rows as prompts that a model answers anew, apart from the answer that a row may hold."""

from __future__ import annotations

from typing import Any

from ftengine.api import Example
from ftengine.errors import DataError
from ftengine_builtins.layouts import normal
from ftengine_builtins.tasks.language_rows import read_row


def own_answer(row: Example) -> dict[str, str]:
    """Return {"completion": a row's own answer as text}, of a conversation its last turn's; {} where it has none."""
    if isinstance(row.get("completion"), str):
        return {"completion": row["completion"]}
    try:
        row = normal(row)
        if row.get("messages") is None and row.get("completion") is None:
            return {}
        last = read_row(row).messages[-1]
    except DataError:
        return {}
    return {"completion": last.text} if last.role == "assistant" else {}


def without_answer(row: Example) -> dict[str, Any]:
    """Return a row without its answer: the completion, or the assistant's turn that its messages end with.

    Columns of other layouts are those of `messages` or `prompt`. DataError: it has neither a prompt nor messages.
    """
    row = normal(row)
    kept = {name: value for name, value in row.items() if name not in ("completion", "messages")}
    messages = row.get("messages")
    if isinstance(messages, (list, tuple)):
        last = messages[-1] if messages else None
        answered = isinstance(last, dict) and last.get("role") == "assistant"
        return {**kept, "messages": list(messages[: len(messages) - answered])}
    if row.get("prompt") is None:
        raise DataError("the row has neither `prompt` nor `messages`, so there is nothing to answer.")
    return kept
