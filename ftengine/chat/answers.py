"""Parsing answers of chat models into thought, text and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ftengine.api.conversation import Conversation, ToolCall
from ftengine.chat.template import CallForm, behind, call_form, render
from ftengine.chat.written_calls import call_of, calls_in

OPENED = re.compile(r"<think>\s*$")
"""The end of a prompt that opens the answer's thought."""
_BLOCK = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
_CHANNEL = re.compile(r"\s*<\|channel\|>analysis<\|message\|>(.*?)(?:<\|end\|>(?:<\|start\|>assistant)?|$)", re.DOTALL)
_JSON = json.JSONDecoder()
_FINAL = "<|channel|>final<|message|>"
"""OpenAI's harmony format, in which thoughts and answers go through channels."""


def read_answer(processor: Any, ids: Sequence[int], *, opened: bool = False) -> tuple[str, str]:
    """Return the thought and the text of what a chat model wrote, both without special tokens.

    With `opened`, the prompt has already begun the thought. Without an end of the thought, everything is thought.
    """
    written = processor.decode(ids, skip_special_tokens=False)
    thought, rest = _divided(written, opened=opened)
    if not thought and rest == written and not written.startswith(_FINAL):
        return "", processor.decode(ids, skip_special_tokens=True)
    return _without_special(processor, thought).strip(), _without_special(processor, rest.removeprefix(_FINAL))


def _divided(written: str, *, opened: bool) -> tuple[str, str]:
    """Return the thought, and the text behind it."""
    if match := _BLOCK.match(written) or _CHANNEL.match(written):
        return match[1], written[match.end() :]
    if opened or written.lstrip().startswith("<think>"):
        return written.replace("<think>", "", 1), ""
    return "", written


def read_calls(processor: Any, ids: Sequence[int], *, opened: bool = False) -> list[ToolCall]:
    """Return the tool calls in what a chat model wrote, behind its thought; `opened` is as in `read_answer`.

    Known forms are tried in turn: that of Hermes and Qwen, JSON alone, and that of the model's template. If one of
    several calls cannot be read, none is returned.
    """
    return _calls_in(processor, processor.decode(ids, skip_special_tokens=False), opened=opened)


def reads_calls(processor: Any, conversation: Conversation, number: int) -> bool:
    """Return whether `read_calls` restores the calls of a message from the chat template's text."""
    prompt = OPENED.sub("", render(processor, conversation, upto=number, prompt=True))
    text = render(processor, conversation, upto=number + 1)
    read = _calls_in(processor, behind(prompt, text), opened=False)
    made, due = (
        [(call.name, json.loads(call.arguments)) for call in calls]
        for calls in (read, conversation.messages[number].calls)
    )
    return made == due


def _calls_in(processor: Any, written: str, *, opened: bool) -> list[ToolCall]:
    rest = _divided(written, opened=opened)[1]
    plain = _without_special(processor, rest).strip()
    marked = calls_in(plain)
    if marked and "<tool_call>" not in marked[0]:
        return list(marked[1])
    form = call_form(processor)
    return _json_alone(plain) or ([] if form is None else _in_form(form, rest))


def _in_form(form: CallForm, written: str) -> list[ToolCall]:
    """Return consecutive calls in a template's form; [] if one of them is incomplete."""
    calls, beside, at = list[ToolCall](), "", 0
    match = form.begin.search(written)
    while match:
        beside += written[at : match.start()]
        try:
            arguments, at = _JSON.raw_decode(written, match.end())
        except (ValueError, RecursionError):
            return []
        calls.append(ToolCall(match[1], json.dumps(arguments, ensure_ascii=False)))
        match = form.again.match(written, at) if form.again else None
        if match is None and (closed := form.end.match(written, at)):
            at = closed.end()
            match = form.begin.search(written, at)
        elif match is None:
            return []
    return [] if form.mark in beside + written[at:] else calls


def _json_alone(text: str) -> list[ToolCall]:
    """Return the calls of a text that is one call in JSON, or several in a list or with semicolons; [] if it is not."""
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
