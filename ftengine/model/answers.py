"""Answers of chat models: what ends them, and which part of one is a thought."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ftengine.api.conversation import Conversation, Message, ToolCall
from ftengine.errors import DataError
from ftengine.model.chat import call_form, render
from ftengine.model.written_calls import call_of, calls_in

OPENED = re.compile(r"<think>\s*$")
"""The end of a prompt that opens the answer's thought."""
_BLOCK = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
_CHANNEL = re.compile(r"\s*<\|channel\|>analysis<\|message\|>(.*?)(?:<\|end\|>(?:<\|start\|>assistant)?|$)", re.DOTALL)
_JSON = json.JSONDecoder()
_FINAL = "<|channel|>final<|message|>"
"""OpenAI's harmony format, in which thoughts and answers go through channels."""


def read_answer(processor: Any, ids: Sequence[int], *, opened: bool = False) -> tuple[str, str]:
    """Return the thought and the text of what a chat model wrote, both without special tokens.

    With `opened`, the prompt had begun the thought already. A thought that has no end is all that was written.
    """
    written = processor.decode(ids, skip_special_tokens=False)
    match = _BLOCK.match(written) or _CHANNEL.match(written)
    if match is None and (opened or written.lstrip().startswith("<think>")):
        return _without_special(processor, written.replace("<think>", "", 1)).strip(), ""
    if match is None and not written.startswith(_FINAL):
        return "", processor.decode(ids, skip_special_tokens=True)
    thought, rest = (match[1], written[match.end() :]) if match else ("", written)
    return _without_special(processor, thought).strip(), _without_special(processor, rest.removeprefix(_FINAL))


def read_calls(processor: Any, ids: Sequence[int]) -> list[ToolCall]:
    """Return the calls of tools in what a chat model wrote, behind its thought.

    They are sought in the form of the model's template, then as Hermes and Qwen write them, then as JSON alone.
    """
    written = processor.decode(ids, skip_special_tokens=False).rpartition("</think>")[2]
    if (form := call_form(processor)) and (calls := _in_form(*form, written)):
        return calls
    plain = _without_special(processor, written).strip()
    marked = calls_in(plain)
    return list(marked[1]) if marked else _json_alone(plain)


def _in_form(form: re.Pattern[str], closing: str, written: str) -> list[ToolCall]:
    """Return calls in a template's form, whose name a pattern finds and whose arguments begin where it ends."""
    calls = []
    for match in form.finditer(written):
        try:
            arguments, end = _JSON.raw_decode(written, match.end())
        except (ValueError, RecursionError):
            continue
        if isinstance(arguments, dict) and "".join(written[end:].split()).startswith(closing):
            calls.append(ToolCall(match[1], json.dumps(arguments, ensure_ascii=False)))
    return calls


def _json_alone(text: str) -> list[ToolCall]:
    """Return the calls of a text that is one in JSON, or several with semicolons or in a list; [] where it is none."""
    parts, at = list[Any](), 0
    try:
        while at < len(text):
            value, end = _JSON.raw_decode(text, at)
            parts += value if isinstance(value, list) else [value]
            at = end + len(text[end:]) - len(text[end:].lstrip(" ;,\n"))
    except (ValueError, RecursionError):
        return []
    calls = [call_of(json.dumps(part)) for part in parts]
    return [] if None in calls else calls  # type: ignore[return-value]


def _without_special(processor: Any, text: str) -> str:
    for token in processor.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, "")
    return text


def end_tokens(processor: Any) -> list[int]:
    """Return the tokens that the template writes behind an assistant's answer, and behind its call of a tool."""
    asked, ends, known = Message("user", "Hello"), list[int](), processor.get_added_vocab()
    call = ToolCall("REPLY", "{}", "REPLY0000")
    for answer in (Message("assistant", "REPLY"), Message("assistant", "", calls=(call,))):
        try:
            text = render(processor, Conversation((asked, answer))).rstrip()
        except DataError:  # it has no place for calls
            continue
        ending = [token for token in known if text.endswith(token)]
        ends += [known[max(ending, key=len)]] if ending else []
    return list(dict.fromkeys(ends))
