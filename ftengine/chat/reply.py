"""Parsing the JSON responses of endpoints with OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 1 << 31
"""No prompt has more, and no vocabulary."""
ROUNDING = 1e-3
"""How far above 0 a log-probability may be."""


class Malformed(ValueError):
    """A response does not follow OpenAI's API; the message names the field and its value."""


@dataclass(frozen=True)
class Reply:
    """An endpoint's answer.

    Args:
        ended: whether it ended by itself; None if the endpoint does not report it.
        prompt_tokens, tokens: number of tokens read and written; None if not reported.
        log_probabilities: of the written tokens; empty if not reported.
    """

    text: str
    ended: bool | None
    prompt_tokens: int | None = None
    log_probabilities: tuple[float, ...] = ()
    tokens: int | None = None


def read_reply(answer: Any, *, chat: bool) -> Reply:
    """Read an answer of `chat/completions`, or of `completions` (Malformed)."""
    choices = _sequence(_mapping(answer, "the answer").get("choices"), "choices")
    choice = _mapping(choices[0] if choices else None, "choices[0]")
    holder, key = (_mapping(choice.get("message"), "message"), "content") if chat else (choice, "text")
    if key not in holder:
        raise Malformed(f"there is no {key!r} in choices[0]")
    reason = _text(choice.get("finish_reason"), "finish_reason")
    usage = _mapping(answer.get("usage") or {}, "usage")
    return Reply(
        _text(holder[key], key),
        {"stop": True, "length": False}.get(reason),
        _count(usage.get("prompt_tokens"), "usage.prompt_tokens"),
        _log_probabilities(choice.get("logprobs")),
        _count(usage.get("completion_tokens"), "usage.completion_tokens"),
    )


def read_tokens(value: Any) -> list[int] | None:
    """Read token ids; None if the value is not a list of them."""
    tokens = value if isinstance(value, list) else []
    valid = all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < MOST_TOKENS for token in tokens)
    return tokens if tokens and valid else None


def read_reason(answer: Any) -> str:
    """Return a server's reason for an error, from the fields of known APIs; "" if there is none."""
    for key in ("error", "message", "detail"):
        if isinstance(answer, Mapping) and answer.get(key):
            answer = answer[key]
    return answer if isinstance(answer, str) else ""


def _log_probabilities(value: Any) -> tuple[float, ...]:
    """Return the log-probabilities of a chat or an older completion response; () if it has none.

    All zeros count as none: some servers report log-probabilities after greedy sampling.
    """
    logprobs = _mapping(value or {}, "logprobs")
    if (content := logprobs.get("content")) is not None:
        entries = [_mapping(entry, "logprobs.content") for entry in _sequence(content, "logprobs.content")]
        values = [entry.get("logprob") for entry in entries]
    else:
        values = list(_sequence(logprobs.get("token_logprobs") or [], "logprobs.token_logprobs"))
    if any(value is None for value in values) or not any(values):
        return ()
    return tuple(_log_probability(value) for value in values)


def _log_probability(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST_TOKENS < value <= ROUNDING:
        return min(float(value), 0.0)
    raise Malformed(f"a log-probability is {_short(value)}, where a number up to 0 is allowed")


def _count(value: Any, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS):
        return value or None  # 0 of a server that does not count
    raise Malformed(f"{where} is {_short(value)}, where a number of tokens is allowed")


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{where} is {_short(value)}, where text or null is allowed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{where} has half of a surrogate pair, which is no text") from None
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise Malformed(f"{where} is {_short(value)}, where an object is allowed")


def _sequence(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, list):
        return value
    raise Malformed(f"{where} is {_short(value)}, where a list is allowed")


def _short(value: Any) -> str:
    """Return a value shortened for a message; integers too large to print are given by magnitude."""
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return f"a number of about 10^{math.log10(abs(value)):.0f}"
    return "missing" if value is None else repr(value)
