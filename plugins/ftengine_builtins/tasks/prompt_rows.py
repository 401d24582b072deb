"""Rows as prompts to answer, separated from the answer that a row may have."""

from __future__ import annotations

from typing import Any

from ftengine.api import Example
from ftengine.errors import DataError
from ftengine_builtins.layouts import normal
from ftengine_builtins.tasks.language_rows import read_row


def own_answer(row: Example) -> dict[str, str]:
    """Return {"completion": the row's own answer as text}, for a conversation its last turn; {} if it has none."""
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
    """Return a row without its answer: the completion, or the assistant's turn at the end of its messages.

    Rows in other layouts are converted to `messages` or `prompt`. DataError: the row has neither.
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
