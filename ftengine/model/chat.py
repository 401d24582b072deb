"""Conversations in a model's own chat template, and which part of the result the assistant wrote."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from jinja2 import Environment, TemplateError

from ftengine.errors import DataError, shown
from ftengine.model.tokens import Span, encode_spans

Message = dict[str, Any]
"""{"role": one of `ROLES`, "content": text}; what the assistant says may have "weight": 0, which leaves it out of the
loss (OpenAI's format)."""

ROLES = ("system", "user", "assistant")

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REPLY = "REPLY"

PATIENCE = 10
"""Seconds of computing for a template and one conversation; a usual one takes a thousandth."""
ROOM = 1 << 29
"""Bytes of memory for the same: ten copies of a conversation of 50 MB."""


def read_messages(value: Any) -> list[Message]:
    """Check a row's `messages`; keys beside role, content and the assistant's weight 0 are left out.

    Raises:
        DataError: not a list of {role, content} with a known role and some text, or a weight is neither 0 nor 1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"`messages` is {shown(value)}; it must be a list of {{role, content}}.")
    if not value:
        raise DataError("`messages` is empty; a conversation has at least one message.")
    return [_read_message(message, number) for number, message in enumerate(value, 1)]


def _read_message(message: Any, number: int) -> Message:
    if isinstance(message, Mapping) and message.get("tool_calls") and "content" not in message:
        message = {**message, "content": None}
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise DataError(f"message {number} is {shown(message)}; it must have `role` and `content`.")
    role, content = message["role"], message["content"]
    called = next((key for key in ("tool_calls", "function_call") if message.get(key)), "")
    if role in ("tool", "function") or (called and not content):
        what = f"calls a tool (`{called}`)" if called else "is what a tool returned"
        raise DataError(
            f"message {number} ({role}) {what}; tool calls are not read. Leave such conversations out with "
            "data.on_error=skip, or write calls and results as text into messages of the assistant and the user."
        )
    if role not in ROLES:
        raise DataError(f"message {number} has role {shown(role)}. Allowed: {', '.join(ROLES)}.")
    if not isinstance(content, str):
        raise DataError(f"message {number} ({role}) has content {shown(content)}; it must be text.")
    if not content.strip():
        raise DataError(f"message {number} ({role}) has no text; leave it out or give it some.")
    weight = message.get("weight") if role == "assistant" else None
    if weight is not None and weight not in (0, 1):
        raise DataError(
            f"message {number} (assistant) has weight {shown(weight)}; it must be 0 (not trained on) or 1 (trained on)."
        )
    read = {"role": role, "content": content}
    return read if weight in (None, 1) else {**read, "weight": 0}


def is_trained(message: Message) -> bool:
    """Say whether a message is the assistant's and counts in the loss."""
    return message["role"] == "assistant" and message.get("weight") != 0


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """Put a system message in front, unless the conversation has one."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def has_template(processor: Any) -> bool:
    """Say whether the processor can write conversations."""
    return bool(getattr(processor, "chat_template", None))


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as templates know them."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def render(processor: Any, messages: list[Message], *, prompt: bool = False) -> str:
    """Write a conversation as the model reads it; with `prompt`, up to where the assistant's reply begins.

    Raises:
        DataError: the template refuses the conversation (roles that do not alternate, a system message, …).
    """
    try:
        if _has_power(processor.get_chat_template()):
            raise DataError(
                "the model's chat template raises numbers to powers (**), which can compute without end. Take the "
                "template from the model's author."
            )
        with limited():
            return processor.apply_chat_template(_as_dicts(messages), tokenize=False, add_generation_prompt=prompt)
    except TimeoutError:
        raise DataError(
            f"the model's chat template takes more than {PATIENCE} s for {len(messages)} messages: it "
            "loops. Take the template from the model's author."
        ) from None
    except MemoryError:
        raise DataError(
            f"the model's chat template takes more than {ROOM >> 20} MiB of memory for {len(messages)} messages. Take "
            "the template from the model's author."
        ) from None
    except (TemplateError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}") from None


@cache
def _has_power(template: str) -> bool:
    """Say whether a template computes powers: one of them can take hours in which no signal is handled."""
    return "**" in template and ("operator", "**") in {(kind, text) for _, kind, text in Environment().lex(template)}


@contextmanager
def limited() -> Iterator[None]:
    """End a block that computes for more than `PATIENCE` (TimeoutError) or takes more than `ROOM` (MemoryError)."""
    with _limited_time(), _limited_memory():
        yield


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Bound the address space, where the system tells how much of it is taken; in the main thread, as it is for all."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb", buffering=0) as file:
        room = int(file.read(99).split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room if soft == resource.RLIM_INFINITY else min(room, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _limited_time() -> Iterator[None]:
    """Bound the computing, where signals can: in the main thread."""
    vtalrm = getattr(signal, "SIGVTALRM", None)  # counts processor time, and has hardly another use
    main = threading.current_thread() is threading.main_thread()
    if vtalrm is None or not main or signal.getsignal(vtalrm) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TimeoutError

    signal.signal(vtalrm, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(vtalrm, signal.SIG_DFL)


def encode_conversation(processor: Any, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Tokenise a conversation and label what the assistant wrote, with the token that ends its turn.

    Where the template marks the assistant's text with {% generation %}, those marks are taken. Otherwise each turn is
    found by writing the conversation up to it and past it. Turns of weight 0 are not labelled. A template that rewrites
    history (drops the reasoning of earlier turns, say) leaves only the last turn as the model would write it, so only
    that one is labelled.

    Returns:
        (input_ids, labels), both (tokens,); labels are -100 outside of the assistant's turns.

    Raises:
        DataError: the template refuses the conversation, or hides where the assistant's text begins or which turn is
            which.
    """
    return encode_spans(processor, *conversation_spans(processor, messages))


def conversation_spans(processor: Any, messages: list[Message]) -> tuple[str, list[Span]]:
    """Write a conversation, and say where in the text stands what `encode_conversation` labels."""
    text = render(processor, messages)
    if _GENERATION_BLOCK.search(processor.get_chat_template()):
        return text, _marked_spans(processor, messages)
    return text, _assistant_spans(processor, messages, text)


def _marked_spans(processor: Any, messages: list[Message]) -> list[Span]:
    """Return what a template marks, without the turns of weight 0."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template, special = processor.get_chat_template(), processor.special_tokens_map
    with limited():  # as long as it took to write it just now
        written: Any = render_jinja_template(
            [_as_dicts(messages)], chat_template=template, return_assistant_tokens_mask=True, **special
        )
    _, [marked] = written
    spans = [(start, end) for start, end in marked if end > start]
    trained = [is_trained(message) for message in messages if message["role"] == "assistant"]
    if all(trained):
        return spans
    if len(spans) != len(trained):
        raise DataError(
            "messages have weight 0, but the model's chat template does not mark each of the assistant's turns by "
            "itself, so they cannot be left out."
        )
    return [span for span, counts in zip(spans, trained, strict=True) if counts]


def _assistant_spans(processor: Any, messages: list[Message], text: str) -> list[Span]:
    replies = [k for k, message in enumerate(messages) if k and message["role"] == "assistant"]
    spans = [_span(processor, messages, k, text) for k in replies]
    if None in spans:
        replies, spans = replies[-1:], spans[-1:]
    if None in spans:
        raise DataError(
            "the model's chat template writes the assistant's last turn differently from the prompt it is to "
            "answer, so what to train on is unknown. Give the tokenizer a template with {% generation %} marks, or "
            "set task.loss_on: all."
        )
    return [span for k, span in zip(replies, spans, strict=True) if span is not None and is_trained(messages[k])]


def _span(processor: Any, messages: list[Message], k: int, text: str) -> Span | None:
    """Return the span of reply k in `text`, or None where the template writes it differently there."""
    prompt = render(processor, messages[:k], prompt=True)
    past = render(processor, messages[: k + 1])
    if not (text.startswith(past) and past.startswith(prompt)):
        return None
    return len(prompt), _turn_end(processor, past)


def _turn_end(processor: Any, past: str) -> int:
    """Leave out the line break that templates write behind the token that ends a turn."""
    stripped = past.rstrip()
    ends = any(stripped.endswith(token) for token in processor.get_added_vocab())
    return len(stripped) if ends else len(past)


def end_of_turn(processor: Any) -> int | None:
    """Return the token that the template writes behind an assistant's reply, or None where it writes none."""
    question = [{"role": "user", "content": "Hello"}]
    try:
        past = render(processor, [*question, {"role": "assistant", "content": _REPLY}])
    except DataError:
        return None
    ids = processor(past.rpartition(_REPLY)[2], add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in processor.get_added_vocab().values() else None
