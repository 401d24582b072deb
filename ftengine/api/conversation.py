"""A conversation, whatever the layout of its data: messages, tools, and the row's arguments for the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool.

    Args:
        name: the function's name.
        arguments: a JSON object as text, so that nothing on the way adds keys to it.
        id: identifies the call in its result; None if the data has none.
    """

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        role: one of `ROLES`.
        content: text, or parts as OpenAI's format has them where some are no text: {"type": "image_url", …}.
        thought: the assistant's thought before its answer; "" for none.
        calls: the tools that the assistant calls.
        trains: whether it counts in the loss, if messages of its role do.
        name: name of the tool whose result this is.
        call_id: id of the call that this answers; None if the data has none.
        written: the content with its calls, or around its result, as text, where the data has them so: for templates
            without a place for calls.
        unwritten: keys of the data that no chat template writes, e.g. "is_error"; `ftengine plan` counts them.
    """

    role: str
    content: str | tuple[Mapping[str, Any], ...]
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    trains: bool = True
    name: str | None = None
    call_id: str | None = None
    written: str = ""
    unwritten: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The content's text, without parts that are no text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(str(part["text"]) for part in self.content if part["type"] == "text")

    @property
    def media(self) -> tuple[str, ...]:
        """Kinds of the parts that are no text, e.g. "image_url"."""
        return () if isinstance(self.content, str) else tuple(p["type"] for p in self.content if p["type"] != "text")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation.

    Args:
        messages: in their order, at least one.
        tools: a JSON list as text, of functions as OpenAI's format describes them; "" where there are none.
        template_arguments: the row's arguments for the chat template, e.g. {"enable_thinking": False}.
        prompt_length: number of messages at the beginning that are the prompt, where the row has prompt and completion.
    """

    messages: tuple[Message, ...]
    tools: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    prompt_length: int = 0
