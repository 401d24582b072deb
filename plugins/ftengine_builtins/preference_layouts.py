"""Layouts of preferences: converting other tools' rows to rows with `prompt`, `chosen` and `rejected`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from ftengine.api import Example
from ftengine.errors import DataError, shown
from ftengine_builtins import layouts

PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
)
"""Columns of the two answers, by name: as TRL and Axolotl, as Axolotl, as OpenAI call them now and did before."""
REJECTED = ("rejected_response", "rejected_messages")
"""Columns of the rejected answer where the chosen one is the end of the messages, as ms-swift has them."""
QUESTIONS = ("prompt", "question", "input")
"""Columns of what is asked, beside those of conversations."""
ANSWER = "Assistant:"
"""What stands in front of answers where whole conversations are texts, as in Anthropic's HH-RLHF."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(rf"(?:^|\n\n)\s*({'|'.join(SPEAKERS)}):")
SIDES = ("chosen", "rejected")

Listed = Callable[[Sequence[Any]], list[Any]]
"""Reads messages without `role`, as a layout has them."""


def sharegpt(messages: Sequence[Any]) -> list[Any]:
    """Convert messages with `from` and `value` to messages with `role` and `content`."""
    return layouts.sharegpt({"conversations": list(messages)})["messages"]


def columns_of(columns: Sequence[str]) -> tuple[str, str] | None:
    """Return the columns of the two answers; ("", column) if the chosen one is the last of the messages."""
    for pair in PAIRS:
        if set(pair) <= set(columns):
            return pair
    beside = {*layouts.COLUMNS, "query", "instruction"} & set(columns)
    return next((("", name) for name in REJECTED if name in columns and beside), None)


def pair_of(row: Example) -> tuple[str, str] | None:
    """Return the columns of a row's two answers (`columns_of`)."""
    return columns_of([name for name, value in row.items() if value is not None])


def layout_of(row: Example) -> str:
    """Return the name of a preference's layout; "" for the columns that all tools share."""
    pair, prompt = pair_of(row), row.get("prompt")
    if pair is None:
        return ""
    if not pair[0]:
        return "ms-swift"
    if pair in PAIRS[2:]:
        return "openai"
    if pair == PAIRS[1] or row.get("question") is not None:
        return "axolotl"
    if row.get("instruction") is not None:
        return "alpaca"
    chosen = row[pair[0]]
    messages = next((value for value in (chosen, prompt) if isinstance(value, list) and value), [chosen])
    if isinstance(messages[0], Mapping):
        beside = "trl" if messages[0] is not chosen else "axolotl"
        return "sharegpt" if "from" in messages[0] else beside
    return ""


def preference(row: Example, listed: Listed = sharegpt) -> dict[str, Any]:
    """Return a row with `prompt`, `chosen` and `rejected`: texts, or lists of messages.

    For whole conversations on both sides the prompt is their common beginning, as in TRL.

    Raises:
        DataError: a column is missing, empty or of another type, or both answers are equal.
    """
    pair = pair_of(row)
    if pair is None:
        has = next((name for both in PAIRS for name in both if row.get(name) is not None), None)
        fault = f"has `{has}` alone" if has else "has no answers to compare"
        raise DataError(f"the row {fault}; it needs `prompt`, `chosen` and `rejected`.")
    rest = {name: value for name, value in row.items() if name not in (*pair, *(n for both in PAIRS for n in both))}
    answers = [row[name] for name in pair if name]
    if isinstance(rest.get("input"), Mapping):  # OpenAI's
        rest = {**{key: value for key, value in rest.items() if key != "input"}, **rest["input"]}
    prompt, rest = _asked(rest, answered=not pair[0])
    if not pair[0]:
        prompt, answers = _of_messages(prompt, pair[1], answers[0], listed)
    sides = dict(zip(SIDES, answers, strict=True))
    system = rest.pop("system", None)
    if all(isinstance(value, str) for value in sides.values()) and (prompt is None or isinstance(prompt, str)):
        for side, text in sides.items():
            if not text.strip():
                raise DataError(f"`{side}` is empty; it must hold some text.")
        if prompt is None:
            prompt, sides = _common_text(sides)
        converted = {"prompt": prompt, **sides}
        if isinstance(system, str) and system:
            converted = _in_messages(converted, listed, system)
    else:
        converted = _in_messages({"prompt": prompt, **sides}, listed, system)
    if converted["chosen"] == converted["rejected"]:
        raise DataError(f"`chosen` and `rejected` are the same, {shown(converted['chosen'])}: no answer is preferred.")
    return {**rest, **converted}


def _asked(row: dict[str, Any], *, answered: bool) -> tuple[Any, dict[str, Any]]:
    """Return what a row asks, text or messages, and the row without it; None where both sides hold it.

    With `answered` the chosen answer stands behind.
    """
    if any(isinstance(row.get(name), list) for name in layouts.COLUMNS):
        converted = dict(layouts.normal(row))
    elif row.get("instruction") is not None:
        converted = layouts.pairs(row if answered else {**row, "output": None})
    elif row.get("query") is not None:
        converted = layouts.query_response(row)
    else:
        name = next((name for name in QUESTIONS if row.get(name) is not None), None)
        return (None if name is None else row[name]), {key: row[key] for key in row if key not in QUESTIONS}
    messages = converted.pop("messages")
    converted = {key: value for key, value in converted.items() if key not in QUESTIONS}
    alone = len(messages) == 1 and role_of(messages[0]) == "user" and isinstance(messages[0]["content"], str)
    return (messages[0]["content"] if alone else messages), converted


def _of_messages(prompt: Any, column: str, rejected: Any, listed: Listed) -> tuple[Any, list[Any]]:
    """Divide messages, whose end is the chosen answer, into prompt and answers."""
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"the row has `{column}` and no `messages` whose end is the chosen answer.")
    prompt = messages_of(prompt, "messages", listed)
    asked = asked_until(prompt)
    if asked == len(prompt):
        raise DataError(f"`messages` end with a user's turn; beside `{column}` they must end with the chosen answer.")
    if column == "rejected_messages" and isinstance(rejected, list):
        rejected = messages_of(rejected, column, listed)
        if _is_system(prompt[0]) and not _is_system(rejected[0]):
            rejected = [prompt[0], *rejected]
        if role_of(rejected[0]) != "assistant":
            return None, [prompt, rejected]
    return prompt[:asked], [prompt[asked:], rejected]


def asked_until(messages: Sequence[Any]) -> int:
    """Return the number of messages up to the last that asks something; a message of only tool results does not."""

    def asks(message: Any) -> bool:
        blocks = message.get("content") if isinstance(message, Mapping) else None
        kinds = (
            {block.get("type") if isinstance(block, Mapping) else None for block in blocks}
            if isinstance(blocks, list)
            else set()
        )
        return role_of(message) in ("user", "system", "developer") and kinds != {"tool_result"}

    return max((k for k, entry in enumerate(messages) if asks(entry)), default=-1) + 1


def role_of(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _in_messages(pair: Mapping[str, Any], listed: Listed, system: Any = None) -> dict[str, Any]:
    """Return prompt and answers as lists of messages; both sides may be whole conversations."""
    sides = {side: messages_of(pair[side], side, listed) for side in SIDES}
    prompt = pair["prompt"]
    given = messages_of(prompt, "prompt", listed) if isinstance(prompt, list) else []
    first = {side: role_of(messages[0]) for side, messages in sides.items()}
    if len({role == "assistant" for role in first.values()}) > 1:
        raise DataError(
            f"`chosen` begins with a message of role {shown(first['chosen'])} and `rejected` with one of "
            f"{shown(first['rejected'])}; either both are whole conversations or both are answers to `prompt`."
        )
    if first["chosen"] != "assistant":
        if given != sides["chosen"]:  # which some tables repeat
            before = given[: len(given) - _overlap(given, sides)]
            sides = {side: [*before, *messages] for side, messages in sides.items()}
        chosen, rejected = sides.values()
        pairs = zip(chosen, rejected, strict=False)
        alike = sum(1 for _ in takewhile(lambda two: two[0] == two[1] and role_of(two[0]) is not None, pairs))
        while alike and alike == min(len(chosen), len(rejected)):
            alike -= 1
        if chosen == rejected:
            return {"prompt": chosen, "chosen": chosen, "rejected": rejected}
        if not alike:
            raise DataError("`chosen` and `rejected` begin with different questions, so they answer no common prompt.")
        prompt, sides = chosen[:alike], {"chosen": chosen[alike:], "rejected": rejected[alike:]}
    elif prompt is None:
        raise DataError("the row has no `prompt`, and `chosen` and `rejected` do not begin with one.")
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif not given:
        prompt = messages_of(prompt, "prompt", listed)
    else:
        answer = len(sides["chosen"])
        prompt = given[:-answer] if answer < len(given) and given[-answer:] == sides["chosen"] else given
        if role_of(prompt[-1]) == "assistant":
            raise DataError("the prompt ends with an assistant's message, and the answers begin with another one.")
    if isinstance(system, str) and system and not _is_system(prompt[0]):
        prompt = [{"role": "system", "content": system}, *prompt]
    return {"prompt": prompt, **sides}


def _is_system(message: Any) -> bool:
    return role_of(message) in ("system", "developer")


def _overlap(given: list[Any], sides: Mapping[str, list[Any]]) -> int:
    """Return how many messages at the end of a prompt both sides begin with."""
    counts = range(len(given), 0, -1)
    return next((k for k in counts if all(side[:k] == given[-k:] for side in sides.values())), 0)


def messages_of(value: Any, name: str, listed: Listed = sharegpt) -> list[Any]:
    """Return an assistant's text, a message, or a list of messages as a list of messages."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise DataError(f"`{name}` is {shown(value)}; it must be text or a list of {{role, content}}.")
    value = value if all("role" in message for message in value) else listed(value)
    # Tables write a key that other rows have as null.
    return [{key: message[key] for key in message if message[key] is not None or key == "content"} for message in value]


def _common_text(sides: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Divide two texts that begin alike into what they share, up to a blank, and the answers."""
    chosen, rejected = sides["chosen"], sides["rejected"]
    start = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
    while start and not chosen[start - 1].isspace():
        start -= 1
    start = len(chosen[:start].rstrip())
    if (marked := chosen.rfind(ANSWER, 0, start)) >= 0:
        start = marked + len(ANSWER)
    if chosen == rejected:
        return chosen, dict(sides)
    if not start or not chosen[start:].strip() or not rejected[start:].strip():
        raise DataError("the row has no `prompt`, and `chosen` and `rejected` do not begin with one.")
    return chosen[:start], {"chosen": chosen[start:], "rejected": rejected[start:]}


def dialogue(text: Any) -> list[dict[str, str]] | None:
    """Parse a text with "Human:" and "Assistant:" turns into messages; None if it does not begin with one of them.

    An empty assistant turn at the end is dropped.
    """
    found = TURN.split(text) if isinstance(text, str) else []
    if len(found) < 3 or found[0].strip():
        return None
    turns = [(SPEAKERS[name], content.strip()) for name, content in zip(found[1::2], found[2::2], strict=True)]
    turns = turns[: len(turns) - (turns[-1] == ("assistant", ""))]
    return [{"role": role, "content": content} for role, content in turns]
