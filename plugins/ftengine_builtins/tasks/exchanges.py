"""Answers of several turns: between what the model draws stand replies of a function of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ftengine.api import Config, Conversation, LoadedModel, Message, ToolCall
from ftengine.chat import read_answer, render
from ftengine.chat.answers import OPENED, read_calls
from ftengine.chat.turn_ends import end_turn
from ftengine.errors import DataError
from ftengine.generation import Answer
from ftengine_builtins.answer_function import AnswerFunction, side_by_side
from ftengine_builtins.tasks.drawn_answers import DrawnAnswer
from ftengine_builtins.tasks.language_rows import calls_json

TURNS = "turns"
"""The argument by which functions get the turns so far, as a list of {"role", "content"}."""
CALLS = "calls"
"""The argument by which a reply gets the calls of the last turn, as a list of {"name", "arguments"}."""
MARK = "ftengine0reply"
"""The text of a turn in whose place the model's tokens stand."""
TAIL = 16
"""Tokens at the end of a prompt that show whether it opens a thought."""
Drawer = Callable[[Sequence[list[int]], Sequence[int]], Sequence[Answer]]
"""Draws an answer to each prompt, given their numbers."""


class ReplyOptions(Config):
    """Answers of several turns."""

    reply: str | None = Field(
        None,
        pattern=r".+\.py:[A-Za-z_]\w*$",
        description="FILE.py:FUNCTION of yours that replies to a turn of the model, such as a tool; null: one turn",
    )
    max_turns: int = Field(4, ge=2, description="most turns of the model in an answer, with reply")
    max_reply_tokens: int = Field(128, ge=1, description="tokens after which a reply is cut")

    @model_validator(mode="after")
    def _replied(self) -> ReplyOptions:
        for key in ("max_turns", "max_reply_tokens") if self.reply is None else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} bounds the turns between which a function replies. Set reply, or leave it out")
        return self


@dataclass(frozen=True)
class Started:
    """An answer's prompt.

    Args:
        conversation: what is asked, with the tools that are offered.
        row: the row's columns and its own answer, which the function may read.
        number: of the answer among those to its prompt.
    """

    conversation: Conversation
    row: Mapping[str, Any]
    number: int


class Environment:
    """A function that replies to turns of the model, in processes of its own.

    It is called with the text of a turn, and by name with columns of the row, `turns` and `calls`. It returns the text
    of the reply, a list of texts where a turn has several calls, or None where nothing more is to be said.

    Args:
        place: FILE.py:FUNCTION.
        timeout: maximal seconds for a reply.
        owner: the component that uses it, for messages.
        processes: number of processes that reply side by side.
        most: maximal number of the model's turns.
        longest: maximal tokens of a reply; the text behind them is cut.
        new: maximal tokens of the model's next turn, for which there must be room.
    """

    def __init__(
        self, place: str, timeout: float, owner: str, processes: int, *, most: int, longest: int, new: int
    ) -> None:
        self._beside = [AnswerFunction(place, timeout, owner, replies=True) for _ in range(processes)]
        self._most, self._longest, self._new, self._timeout = most, longest, new, timeout

    def start(self) -> None:
        """Start the function's process (RecipeError: its file cannot be imported)."""
        self._beside[0].start()

    def code_files(self) -> list[Path]:
        """Return the function's file and the files of its own code that it imports."""
        return self._beside[0].code_files()

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise DataError if a row lacks a column that the function requires."""
        self._beside[0].check_row({**row, TURNS: [], CALLS: []})

    def go_on(
        self, loaded: LoadedModel, answers: Sequence[DrawnAnswer], started: Sequence[Started], draw: Drawer
    ) -> list[DrawnAnswer]:
        """Return answers with their further turns: replies, and what the model draws behind them.

        Tokens are only appended, so what was drawn is what is trained. An answer ends where the function returns None
        or fails, where a turn was cut off, after the maximal number of turns, or where the model reads no more.
        """
        answers = [
            replace(one, own=[True] * len(one.ids), turns=_turn(loaded.processor, one.prompt, one.ids, one.text))
            for one in answers
        ]
        growing = [i for i, one in enumerate(answers) if one.ended]
        for _ in range(1, self._most):
            asked = [(answers[i].text, self._given(answers[i], started[i])) for i in growing]
            replies = side_by_side(self._beside, asked, lambda function, pair: function.score(*pair))
            going = []
            for i, reply in zip(growing, replies, strict=True):
                answers[i] = self._replied(loaded, answers[i], started[i], reply)
                going += [i] if answers[i].turns[-1]["role"] != "assistant" else []
            drawn = draw([answers[i].prompt + answers[i].ids for i in going], [started[i].number for i in going])
            for i, answer in zip(going, drawn, strict=True):
                answers[i] = _grown(loaded, answers[i], answer)
            growing = [i for i in going if answers[i].ended]
        return answers

    def _given(self, answer: DrawnAnswer, started: Started) -> dict[str, Any]:
        return {**started.row, TURNS: list(answer.turns), CALLS: answer.turns[-1].get(CALLS, [])}

    def _replied(
        self, loaded: LoadedModel, answer: DrawnAnswer, started: Started, result: Mapping[str, Any]
    ) -> DrawnAnswer:
        """Return an answer with the tokens of a reply, or with why there is none; as it is where nothing was said."""
        calls = answer.turns[-1].get(CALLS, []) if started.conversation.tools else []
        if "reply" not in result:
            why = result.get("error", f"the reply took longer than {self._timeout:g} s")
            return replace(answer, error=f"{self._beside[0].name}: {why}")
        if (texts := result["reply"]) is None:
            return answer
        if len(texts) != max(1, len(calls)):
            expected = f"{len(calls)}, one a call" if calls else "one"
            return replace(answer, error=f"{self._beside[0].name}: it returned {len(texts)} texts, not {expected}")
        texts = [self._cut(loaded.processor, text) for text in texts]
        ids = reply_tokens(loaded.processor, started.conversation, texts, [call["name"] for call in calls])
        length = len(answer.prompt) + len(answer.ids) + len(ids) + self._new
        if loaded.max_length is not None and length > loaded.max_length:
            return answer
        role = "tool" if calls else "user"
        turns = (*answer.turns, *({"role": role, "content": text} for text in texts))
        return replace(answer, ids=answer.ids + ids, own=[*answer.own, *[False] * len(ids)], turns=turns)

    def _cut(self, processor: Any, text: str) -> str:
        ids = processor(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= self._longest else processor.decode(ids[: self._longest])


def reply_tokens(processor: Any, conversation: Conversation, texts: Sequence[str], called: Sequence[str]) -> list[int]:
    """Return the tokens between the end of an assistant's turn and the next one: replies as the template writes them.

    They do not depend on what the assistant wrote, so that its tokens are never encoded again.

    Args:
        called: names of the tools whose results the texts are; none where they are a user's.

    Raises:
        DataError: the template writes a turn differently once others follow.
    """
    calls = tuple(ToolCall(name, f'{{"at": "{MARK}"}}', f"reply{i:04d}") for i, name in enumerate(called))
    turn = Message("assistant", "" if calls else MARK, calls=calls)
    replies = [Message("user", text) for text in texts]
    if calls:
        results = zip(texts, calls, strict=True)
        replies = [Message("tool", text, name=call.name, call_id=call.id) for text, call in results]
    before = (*conversation.messages, turn)
    text, end, _ = end_turn(processor, render(processor, replace(conversation, messages=before)), turn)
    whole = render(processor, replace(conversation, messages=(*before, *replies)), prompt=True)
    behind, at = text[text.rindex(MARK) : end], whole.rfind(MARK)
    if not whole.startswith(behind, at):
        raise DataError(
            "the model's chat template ends a turn differently once others follow it, so that the tokens of a reply "
            "are unknown. Leave task.reply out, or take another template."
        )
    return processor(whole[at + len(behind) :], add_special_tokens=False)["input_ids"]


def _opened(processor: Any, prompt: Sequence[int]) -> bool:
    """Say whether a prompt has begun the answer's thought."""
    return bool(OPENED.search(processor.decode(prompt[-TAIL:])))


def _turn(processor: Any, prompt: Sequence[int], ids: Sequence[int], text: str) -> tuple[dict[str, Any], ...]:
    calls = json.loads(calls_json(read_calls(processor, ids, opened=_opened(processor, prompt))))
    return ({"role": "assistant", "content": text, **({CALLS: calls} if calls else {})},)


def _grown(loaded: LoadedModel, answer: DrawnAnswer, further: Answer) -> DrawnAnswer:
    """Return an answer with another turn of the model."""
    end = [] if further.ended_by is None else [further.ended_by]
    ids, opened = [*further.tokens, *end], _opened(loaded.processor, answer.ids)
    text = read_answer(loaded.processor, further.tokens, opened=opened)[1]
    return replace(
        answer,
        ids=answer.ids + ids,
        own=[*answer.own, *[True] * len(ids)],
        text=text,
        ended=bool(end),
        sampled=[*(answer.sampled or []), *further.log_probabilities] or None,
        turns=(*answer.turns, *_turn(loaded.processor, answer.ids, further.tokens, text)),
    )
