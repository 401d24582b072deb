"""Counts of each conversation, from which `plan` shows how much of all rows is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftengine.api import Conversation
from ftengine.chat.template import writes_tools
from ftengine.chat.turns import Written
from ftengine.model import IGNORED, Span, encode_spans

ROLE, LAYOUT, UNWRITTEN = "tokens.", "layout.", "unwritten."
"""In front of a role, the name of the count of its trained tokens; of a layout, of examples that are in it; of what the
data says of messages and no template writes, of such messages."""
TEMPLATE = "template"
"""The role of tokens that the template adds."""


def kind_of(conversation: Conversation) -> str:
    """Return the kind of a conversation, by the rarest of its features."""
    messages = conversation.messages
    if any(message.calls for message in messages):
        return "tool calls"
    if any(message.thought for message in messages):
        return "thoughts"
    if any(not message.trains for message in messages):
        return "weights"
    return "several turns" if sum(message.role == "assistant" for message in messages) > 1 else "one turn"


def counts_of(
    processor: Any, conversation: Conversation, written: Written, labels: Sequence[int], remaining: range
) -> dict[str, int]:
    """Count an example's trained tokens and features of its conversation.

    Args:
        labels: labels of the whole example; `kept` marks those left after cutting.
    """
    counts = Counter(written.counts, conversations=1)
    trained = [i for i, label in enumerate(labels) if label != IGNORED]
    counts["targets"] = bool(written.spans)
    counts["end_of_turn"] = bool(trained) and written.ends and trained[-1] in remaining
    counts["calls"] = sum(len(message.calls) for message in conversation.messages)
    counts["calls_without_tools"] = 0 if conversation.tools else counts["calls"]
    counts["tools_left_out"] = not writes_tools(processor, conversation)
    counts.update(f"{UNWRITTEN}{name}" for message in conversation.messages for name in message.unwritten)
    total = sum(i in remaining for i in trained)
    if written.last is None and written.spans:  # all of it is trained on, whoever said it
        counts.update(dict(_by_role(processor, conversation, written.text, remaining, total)))
    else:
        counts[f"{ROLE}assistant"] = total
    return {name: int(count) for name, count in counts.items() if count}


def with_layout(counts: Mapping[str, int], layout: str) -> dict[str, int]:
    """Return the counts of a conversation under the row's own layout, not the one it was converted to."""
    rest = {name: count for name, count in counts.items() if not name.startswith(LAYOUT)}
    return {**rest, f"{LAYOUT}{layout}": 1} if layout and "conversations" in rest else rest


def _by_role(
    processor: Any, conversation: Conversation, text: str, remaining: range, total: int
) -> Iterator[tuple[str, int]]:
    places: dict[str, list[Span]] = {}
    at = 0
    for message in conversation.messages:
        content = message.text.strip()
        if content and (start := text.find(content, at)) >= 0:
            at = start + len(content)
            places.setdefault(message.role, []).append((start, at))
    for role, spans in places.items():
        _, labels = encode_spans(processor, text, spans)
        count = sum(labels[i] != IGNORED for i in remaining if i < len(labels))
        total -= count
        yield f"{ROLE}{role}", count
    yield f"{ROLE}{TEMPLATE}", max(total, 0)
