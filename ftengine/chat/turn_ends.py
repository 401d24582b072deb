"""Finding the tokens that end the assistant's turns: written by the chat template, or the next speaker's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ftengine.api.conversation import Conversation, Message, ToolCall
from ftengine.chat.template import has_template, remembered, render
from ftengine.errors import DataError

if TYPE_CHECKING:
    from ftengine.api import LoadedModel

_ASKED, _ANSWER = Message("user", "Hello"), Message("assistant", "REPLY")
_CALL, _SECOND = ToolCall("REPLY", "{}", "REPLY0000"), ToolCall("AGAIN", "{}", "AGAIN0000")
_CALLED = Message("assistant", "", calls=(_CALL,), written="REPLY")
"""A call, which a template without a place for calls writes as the text that it was."""
_RESULT = Message("tool", "REPLY", name=_CALL.name, call_id=_CALL.id)


@dataclass(frozen=True)
class TurnEnds:
    """The tokens that end an assistant's messages in a template; "" if there is none.

    Args:
        answer, call: the token after an answer, and after tool calls.
        after_answer, after_call: if the template writes no token there, the token with which the user's next message,
            or the tool's result, begins: GLM-4.5's <|user|> and <|observation|>, with which the model ends its turn.
        each_call: the token after each of several calls; it does not end the turn.
    """

    answer: str = ""
    call: str = ""
    after_answer: str = ""
    after_call: str = ""
    each_call: str = ""

    def after(self, message: Message) -> str:
        """Return the next speaker's token, which ends a message that has no end token of its own."""
        return self.after_call if message.calls else self.after_answer


def end_tokens(processor: Any) -> list[int]:
    """Return the tokens that end an assistant's answer, and its call of a tool, by the chat template.

    If the template writes none there, the next speaker's token ends a turn.
    """
    ends = _ends(processor)
    tokens = (ends.answer or ends.after_answer, ends.call or ends.after_call)
    return list(dict.fromkeys(processor.get_added_vocab()[token] for token in tokens if token))


def stop_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """Return the ids of tokens that end an answer: the model's own, the tokenizer's EOS, and the template's.

    The last id is the one that training teaches: the end of a turn, or EOS without a template.
    """
    own = getattr(getattr(loaded.module, "generation_config", None), "eos_token_id", None)
    turns = end_tokens(loaded.processor) if has_template(loaded.processor) else []
    stop = [*turns, loaded.processor.eos_token_id, *(own if isinstance(own, list) else [own])]
    return tuple(dict.fromkeys(token for token in stop if token is not None))[::-1]


def end_turn(processor: Any, text: str, message: Message) -> tuple[str, int, bool]:
    """Return the text up to a message with its end token, the position of its end, and whether it has an end token.

    If the template writes none after the assistant's message, the next speaker's token is used, without a line break
    before it. A special token that is part of the message itself does not count.
    """
    ends, stripped = _ends(processor), text.rstrip()
    token = _ending(processor, stripped)
    after = ends.after(message) if message.role == "assistant" else ""
    own = (message.written or message.text).rstrip()
    its_own = token not in (ends.answer, ends.call, after) and own.endswith(token)
    if token in ("", ends.each_call) or its_own:
        return text + after, len(text + after), bool(after)
    return text, len(stripped), True


def _ends(processor: Any) -> TurnEnds:
    ends: TurnEnds = remembered(processor, ("turn ends", len(processor)), lambda: _find_ends(processor))
    return ends


def _find_ends(processor: Any) -> TurnEnds:
    question = _written(processor, _ASKED)
    begins = _written(processor, _ASKED, prompt=True).removeprefix(question)
    begins = begins or _written(processor, _ASKED, _ANSWER).removeprefix(question)  # without a prompt for answers
    answer, after_answer = _end(processor, _ANSWER, _ASKED, begins)
    call, after_call = _end(processor, _CALLED, _RESULT, begins)
    each = ""
    if call and call != answer and after_call:
        both = _written(processor, _ASKED, Message("assistant", "", calls=(_CALL, _SECOND)))
        each = call if both.count(call) > _written(processor, _ASKED, _CALLED).count(call) else ""
    after_answer = "" if answer else after_answer
    if not call and not after_call:  # it has no place for results of tools, which a user then tells
        after_call = after_answer
    return TurnEnds(answer, "" if each else call, after_answer, after_call, each)


def _end(processor: Any, message: Message, following: Message, begins: str) -> tuple[str, str]:
    """Return the token at the end of a message, and the token at the beginning of the next message.

    The latter is no end if the assistant's own turns begin with it (`begins`), like ChatML's <|im_start|>.
    """
    text = _written(processor, _ASKED, message)
    more = _written(processor, _ASKED, message, following)
    rest = more.removeprefix(text) if text and more.startswith(text) else ""
    after = _speaker(processor, rest)
    return _ending(processor, text.rstrip()), "" if after and begins.startswith(after) else after


def _written(processor: Any, *messages: Message, prompt: bool = False) -> str:
    try:
        return render(processor, Conversation(messages), prompt=prompt)
    except DataError:  # it has no place for calls, or refuses the roles
        return ""


def _ending(processor: Any, text: str) -> str:
    """Return the longest added token that a text ends with; "" if there is none."""
    return next((text[-n:] for n, tokens in _by_length(processor).items() if text[-n:] in tokens), "")


def _speaker(processor: Any, text: str) -> str:
    """Return the longest special token that a text begins with.

    "" if there is none, or if every text begins with it.
    """
    special = {token.content for token in processor.added_tokens_decoder.values() if token.special}
    special -= {processor.bos_token} - {processor.eos_token}
    begins = (text[:n] for n, tokens in _by_length(processor).items() if text[:n] in tokens & special)
    return next((token for token in begins if token.strip()), "")


def _by_length(processor: Any) -> dict[int, set[str]]:
    """Return the added tokens by their length, the longest first: some tokenizers have thousands."""

    def find() -> dict[int, set[str]]:
        tokens: Iterable[str] = sorted(filter(None, processor.get_added_vocab()), key=len, reverse=True)
        return {n: set(of) for n, of in groupby(tokens, key=len)}

    by_length: dict[int, set[str]] = remembered(processor, ("added tokens", len(processor)), find)
    return by_length
