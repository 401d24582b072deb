"""Finding the assistant's turns in a conversation as they will be served, and the spans to train on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from ftengine.api.conversation import Conversation, Message
from ftengine.chat.answers import OPENED
from ftengine.chat.template import marks, render
from ftengine.chat.turn_ends import end_turn
from ftengine.errors import DataError, shown
from ftengine.model.tokens import Span, encode_spans

_OPENS = re.compile(r"\s*(?:<think>|<\|channel\|>\w+<\|message\|>)?\s*")
_CLOSED = re.compile(r"\s*</think>\s*")
_EMPTY = re.compile(r"\s*(?:<think>)?\s*</think>\s*")
"""A thought's block without a thought, as templates put in front of answers; of one that the prompt opens, its end."""


@dataclass(frozen=True)
class Turn:
    """One of the assistant's messages as it will be served.

    Args:
        number: of the message, counted from 0.
        text: the conversation up to and including it, with the next speaker's token if that ends a turn.
        start, end: where in the text the message begins, behind the prompt, and ends with the token that ends a turn.
        ends: whether a token ends the turn.
        opened: whether the prompt begins a thought, which the model then has to end.
        rendered: whether the text is exactly the template's, without an inserted thought.
    """

    number: int
    text: str
    start: int
    end: int
    ends: bool
    rendered: bool
    opened: bool = False


@dataclass(frozen=True)
class Written:
    """A training example made from a conversation.

    Args:
        text: as the model reads it.
        spans: the parts to train on.
        last: the last message that is trained on; None if there is none.
        ends: whether the last trained turn ends with an end token.
        counts: "thoughts" (in turns that are trained on); "thoughts_dropped" (by the template); "empty_thoughts"
            (blocks that the template writes before answers without a thought); "ended_thoughts" (that the prompt opens
            before answers without a thought); "untrained_calls" (turns with calls of which no name is trained on).
    """

    text: str
    spans: list[Span]
    last: int | None = None
    ends: bool = False
    counts: Counter[str] = field(default_factory=Counter)


def write(
    processor: Any, conversation: Conversation, trained: Collection[int], *, mask_thoughts: bool = False
) -> list[Written]:
    """Render a conversation into examples that train some assistant messages as they will be served.

    This is one example if the template writes each turn in the same way when others follow. If it does not (it drops
    earlier thoughts, say), a turn that it would write differently becomes the end of an example of its own.

    Args:
        trained: numbers of messages, from 0; the first message of all answers nothing.
        mask_thoughts: do not train on thoughts.

    Raises:
        DataError: the template refuses the conversation, hides where a message begins, or marks something else with
            {% generation %} than what is served.
    """
    request = (conversation, tuple(sorted(trained)), mask_thoughts, processor.chat_template)
    if (last := _LAST.get(processor)) is None or last[0] != request:
        last = _LAST[processor] = request, _write(processor, *request[:3])
    return last[1]


_LAST: WeakKeyDictionary[Any, tuple[Any, list[Written]]] = WeakKeyDictionary()
"""What was written last by each tokenizer: a row is asked first how many examples it makes, and then for each."""


def _write(processor: Any, conversation: Conversation, trained: Sequence[int], mask_thoughts: bool) -> list[Written]:
    text_of_all = render(processor, conversation)
    left = [turn(processor, conversation, k, text_of_all) for k in trained]
    if not left:
        return [Written(text_of_all, [])]
    turns = []
    text = left[-1].text if left[-1].text.startswith(text_of_all) else text_of_all  # with the next speaker's token
    marked = marks(processor, conversation, len(conversation.messages))
    while left:
        covered = [candidate for candidate in left if text.startswith(candidate.text[: candidate.end])]
        if covered:
            turns.append(_written(processor, conversation, text, marked, covered, mask_thoughts))
            left = [candidate for candidate in left if candidate not in covered]
        if left:
            text, last = left[-1].text, left[-1]
            marked = marks(processor, conversation, last.number + 1) if last.rendered else None
    return turns[::-1]


def _written(
    processor: Any,
    conversation: Conversation,
    text: str,
    marked: Sequence[Span] | None,
    turns: Sequence[Turn],
    masked: bool,
) -> Written:
    spans, counts = list[Span](), Counter[str]()
    for part in turns:
        message = conversation.messages[part.number]
        start = _start(message, text[: part.end], part, masked, counts)
        if marked is None:
            spans.append((start, part.end))
        else:
            before = render(processor, conversation, upto=part.number)
            head = next((i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(before))
            spans += _agreed(text, min(head, part.start), marked, part, start)
        if message.calls and not _trains_calls(message, text, part, spans):
            counts["untrained_calls"] += 1
    return Written(text, spans, turns[-1].number, turns[-1].ends, counts)


def _trains_calls(message: Message, text: str, part: Turn, spans: Sequence[Span]) -> bool:
    """Return whether the name of one of a turn's calls lies within the trained spans."""
    names = re.compile("|".join(re.escape(call.name) for call in message.calls))
    places = [match.span() for match in names.finditer(text, part.start, part.end)]
    return any(begin <= first and last <= end for first, last in places for begin, end in spans)


def _start(message: Message, text: str, part: Turn, masked: bool, counts: Counter[str]) -> int:
    """Return the start of the trained span of a turn: behind an empty or masked thought.

    If the prompt opens a thought but the turn has none, the model is trained to end it.
    """
    start = part.start
    if not message.thought:
        if empty := _EMPTY.match(text, start):
            counts["ended_thoughts" if part.opened else "empty_thoughts"] += 1
            return start if part.opened and not masked else empty.end()
        return start
    counts["thoughts"] += 1
    at = _place(message, text, start)
    if at < 0:
        counts["thoughts_dropped"] += 1
        empty = _EMPTY.match(text, start)
        return empty.end() if empty else start
    if not masked:
        return start
    end = at + len(message.thought)
    closed = _CLOSED.match(text, end)
    return closed.end() if closed else end


def _place(message: Message, text: str, start: int) -> int:
    """Return the position of a turn's thought, between its opening tag and the answer; -1 if it is not there."""
    at, answer_text = text.find(message.thought, _OPENS.match(text, start).end()), message.text.strip()  # type: ignore[union-attr]
    end, answer = at + len(message.thought), text.rfind(answer_text) if answer_text else -1
    return at if _CLOSED.match(text, end) or answer < start or end <= answer else -1


def _agreed(text: str, head: int, marked: Sequence[Span], part: Turn, start: int) -> Iterator[Span]:
    """Yield the spans that a template marks in a turn, from `start` on, with the end token.

    Raises:
        DataError: it marks nothing in the turn, or text of other messages (before `head`, or behind the turn).
    """
    inside = [(first, last) for first, last in marked if first < part.end and last > part.start]
    first, last = (inside[0][0], inside[-1][1]) if inside else (0, 0)
    if not inside or first < head or text[part.end : last].strip():
        raise DataError(
            f"the model's chat template marks {shown(text[first:last])} with {{% generation %}}, where message "
            f"{part.number + 1} (assistant) is served as {shown(text[part.start : part.end])}. Take the template "
            "from the model's author, or one without such marks."
        )
    for first, last in inside:
        if last > start:
            yield max(first, start), part.end if (first, last) == inside[-1] else last


def turn(processor: Any, conversation: Conversation, k: int, rendered_text: str = "") -> Turn:
    """Return assistant message k, counted from 0, as it will be served.

    This is the text after the prompt that it answers. If a template opens a thought in the prompt but does not write it
    for past messages, the thought is added.

    Raises:
        DataError: the template writes the message differently from what follows its prompt.
    """
    prompt = render(processor, conversation, upto=k, prompt=True)
    ended = rendered_text and k + 1 == len(conversation.messages)
    text = rendered_text if ended else render(processor, conversation, upto=k + 1)
    opened, rendered = OPENED.search(prompt), True
    if not text.startswith(prompt) and opened and text.startswith(prompt[: opened.start()]):
        empty, rendered = _EMPTY.match(text, opened.start()), False
        behind = text[empty.end() if empty else opened.start() :].lstrip("\n")
        text = f"{prompt}{conversation.messages[k].thought}\n</think>\n\n{behind}"
    if not text.startswith(prompt) and (joined := _behind(processor, conversation, k, prompt, text)) is not text:
        text, rendered = joined, False
    if not text.startswith(prompt):
        has = conversation.messages[k].thought
        cure = "Take thoughts out with task.thoughts: remove, or let the template think (task.chat_template_kwargs)"
        raise DataError(
            f"the model's chat template writes message {k + 1} (assistant) differently from the prompt that it is to "
            f"answer, so what to train on is unknown. {cure if has else 'Set task.train_on: all'}, or take the "
            "template from the model's author."
        )
    text, end, ends = end_turn(processor, text, conversation.messages[k])
    return Turn(k, text, len(prompt), end, ends, rendered, bool(opened))


def _behind(processor: Any, conversation: Conversation, k: int, prompt: str, text: str) -> str:
    """Return a prompt with its answer, if the template writes the preceding assistant message differently.

    The answer is taken from the rendering in which that message is the last one.
    """
    if conversation.messages[k - 1].role != "assistant":
        return text
    before = render(processor, conversation, upto=k)
    begins = prompt[len(before) :] if prompt.startswith(before) else ""
    answer = text.rpartition(begins)[2] if begins else ""
    return prompt + answer if answer and conversation.messages[k].text.strip() in answer else text


def encode_conversation(processor: Any, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Tokenise a conversation and label the assistant's turns, including their end tokens.

    Not labelled are messages of weight 0, and turns that the template writes differently when others follow, except the
    last turn (`write` makes further examples of them).

    Returns:
        (input_ids, labels), both (tokens,); labels are -100 outside of the assistant's turns.

    Raises:
        DataError: the template refuses the conversation, or hides where the assistant's text begins.
    """
    written = write(processor, conversation, answers(conversation))[-1]
    return encode_spans(processor, written.text, written.spans)


def answers(conversation: Conversation) -> list[int]:
    """Return which messages, counted from 0, are the assistant's and count in the loss."""
    messages = enumerate(conversation.messages)
    return [k for k, message in messages if k and message.role == "assistant" and message.trains]
