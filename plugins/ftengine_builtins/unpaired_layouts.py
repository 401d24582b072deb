"""Layouts of unpaired preferences: converting other tools' rows to `prompt`, `completion` and `label`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftengine.api import Example
from ftengine.errors import DataError, shown
from ftengine_builtins import layouts
from ftengine_builtins.preference_layouts import asked_until, messages_of

TAGS = ("label", "kto_tag")
"""Columns that say whether an answer is desirable: as TRL and ms-swift, as LlamaFactory call it."""
ANSWERED = (
    *({name} for name in layouts.COLUMNS),
    *({"prompt", "completion"}, {"instruction", "output"}, {"query", "response"}),
)
"""Columns of what is asked with its answer."""
DESIRABLE = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def tag_of(columns: Sequence[str]) -> str | None:
    """Return the column that marks answers as desirable; None if rows are no unpaired preferences."""
    if not any(names <= set(columns) for names in ANSWERED):
        return None
    return next((name for name in TAGS if name in columns), None)


def are_unpaired(columns: Sequence[str], rows: Sequence[Example]) -> bool:
    """Return whether rows are answers with a label true or false."""
    tag = tag_of(columns)
    try:
        return tag is not None and bool([desirable(row[tag]) for row in rows if row.get(tag) is not None])
    except DataError:
        return False


def desirable(value: Any) -> bool:
    """Return whether an answer is desirable (DataError: the value is neither true nor false)."""
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, (bool, int, float, str)) or key not in DESIRABLE:
        raise DataError(
            f"`label` is {shown(value)}; it must be true for a desirable answer, false for one that is not."
        )
    return DESIRABLE[key]


def unpaired(row: Example) -> dict[str, Any]:
    """Return a row with `prompt` and `completion`, both texts or both lists of messages, and `label`, true or false.

    In a conversation, all messages after the last question are the answer.

    Raises:
        DataError: a column is missing, empty or of another type.
    """
    tag = next((name for name in TAGS if row.get(name) is not None), "label")
    label = desirable(row.get(tag))
    converted = dict(layouts.normal({name: value for name, value in row.items() if name != tag}))
    if converted.get("messages") is not None:
        messages = messages_of(converted.pop("messages"), "messages")
        asked = asked_until(messages)
        converted |= {"prompt": messages[:asked], "completion": messages[asked:]}
        if not converted["completion"]:
            raise DataError("`messages` end with a user's turn; they must end with the answer that `label` judges.")
    for name in ("prompt", "completion"):
        if converted.get(name) is None:
            raise DataError(f"the row has no `{name}`; it needs `prompt`, `completion` and `label`.")
    asked, answer = converted["prompt"], converted["completion"]
    if not (isinstance(asked, str) and isinstance(answer, str)):
        asked = [{"role": "user", "content": asked}] if isinstance(asked, str) else messages_of(asked, "prompt")
        answer = messages_of(answer, "completion")
    if is_empty(answer):
        raise DataError("`completion` is empty; it must hold some text.")
    return {**converted, "prompt": asked, "completion": answer, "label": label}


def is_empty(answer: Any) -> bool:
    """Return whether an answer, a text or messages, is empty."""
    if isinstance(answer, str):
        return not answer.strip()
    contents = [part.get("content") or part.get("tool_calls") for part in answer]
    return not any(part.strip() if isinstance(part, str) else part for part in contents)
