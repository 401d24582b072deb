"""Conversations with base and tuned model side by side, blind on request."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ftengine.errors import InputError
from ftengine_studio.judgements import append_line, now
from ftengine_studio.judging import NotThere, note_of, verdict_of
from ftengine_studio.runs import StudioRun

if TYPE_CHECKING:
    from ftengine import Chat

TALKS = "talks.jsonl"
"""Judged conversations, in the run's folder: of prompts that people made up, so no sample of the test set."""
MOST_CONVERSATIONS = 200
"""Conversations that are kept; the oldest go."""
LONGEST_MESSAGE = 20_000
REPORTED = 1.0
"""Seconds between two reports of what a message waits for."""
SIDES: tuple[Literal["base", "tuned"], ...] = ("base", "tuned")
POSITIONS = ("left", "right")


class Stopped(Exception):
    """Nobody reads the answer any more."""


@dataclass
class Conversation:
    """A conversation with both models, each of which has its own answers in its history.

    Args:
        sides: the models on the left and on the right, "base" and "tuned".
        blind: whether the sides are still hidden.
        turns: by position, the messages so far.
    """

    sides: Mapping[str, str]
    blind: bool
    turns: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"left": [], "right": []})

    def names(self) -> dict[str, str] | None:
        """Return the models by side; None while they are hidden."""
        return None if self.blind else dict(self.sides)


class Talk:
    """The conversations with one run's models, which answer one message at a time."""

    def __init__(self, run: StudioRun, *, trust_code: bool = False) -> None:
        self.run, self._trust_code = run, trust_code
        self._busy = threading.Lock()
        self._chat: Chat | None = None
        self._loading: dict[str, Any] | None = {"state": "loading"}
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()

    def begin(self, blind: bool) -> tuple[str, Conversation]:
        """Begin a conversation; return its id. The sides are drawn anew where it is blind."""
        self._require_finished()
        order = ("base", "tuned") if not blind or secrets.randbelow(2) else ("tuned", "base")
        key = secrets.token_urlsafe(12)
        self._conversations[key] = conversation = Conversation(dict(zip(POSITIONS, order, strict=True)), blind)
        while len(self._conversations) > MOST_CONVERSATIONS:
            self._conversations.popitem(last=False)
        return key, conversation

    def conversation(self, key: str) -> Conversation:
        """Return a conversation (NotThere: there is none of this id)."""
        if key not in self._conversations:
            raise NotThere("this conversation is over: the server was started anew. Begin another.")
        return self._conversations[key]

    def load(self, models: bool) -> None:
        """Import what models need, and load them if `models`, in a thread (InputError: there are none yet).

        The first message then waits less; what fails is reported where it is to be answered.
        """
        self._require_finished()
        if self._chat is None and not (models and self._busy.locked()):
            target = self._load_quietly if models else _import
            threading.Thread(target=target, name="ftengine-studio-load", daemon=True).start()

    def answer(self, conversation: Conversation, message: Any, write: Callable[[dict[str, Any]], None]) -> None:
        """Let both models answer a message, one after the other.

        Args:
            write: gets {"side", "piece"} for each piece of text, and {"side", "state"} where an answer begins or ends,
                and {"state": "loading"} (with "model" of "models") or "waiting" before; whatever it raises ends the
                answer.

        Raises:
            InputError: the message is empty, too long, or does not fit the model.
        """
        if not isinstance(message, str) or not message.strip() or len(message) > LONGEST_MESSAGE:
            raise InputError(f"a message is text of 1 to {LONGEST_MESSAGE:,} characters.")
        with self._turn(write):
            chat, turns = self._loaded(write), {}
            for position in POSITIONS:
                write({"side": position, "state": "begins"})
                turns[position] = self._answer(chat, conversation, position, message, write)
                write({"side": position, "state": "ends"})
            conversation.turns = turns  # of both or of neither, so that the histories stay alike

    @contextmanager
    def _turn(self, write: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Hold the models; until they are free, write what is waited for."""
        while not self._busy.acquire(timeout=REPORTED):
            write(self._loading or {"state": "waiting"})
        try:
            yield
        finally:
            self._busy.release()

    def _loaded(self, write: Callable[[dict[str, Any]], None]) -> Chat:
        """Return the models, loaded at the first call; write which of them is loaded, not whose side it is."""
        from ftengine import Chat, load_run

        if self._chat is None:
            write({"state": "loading"})
            self._chat = Chat(load_run(self.run.path, trust_code=self._trust_code))
        if self._loading is not None:
            for number, side in enumerate(SIDES, 1):
                self._loading = {"state": "loading", "model": number, "models": len(SIDES)}
                write(self._loading)
                self._chat.converses(side)
            self._loading = None
        return self._chat

    def _load_quietly(self) -> None:
        with self._busy, suppress(Exception):  # `answer` meets it again, and reports it
            self._loaded(lambda line: None)

    def _require_finished(self) -> None:
        if not self.run.finished:
            raise InputError(f"run {self.run.name!r} has no trained model yet: it is {self.run.state}.")

    def _answer(
        self,
        chat: Chat,
        conversation: Conversation,
        position: str,
        message: str,
        write: Callable[[dict[str, Any]], None],
    ) -> list[dict[str, str]]:
        """Return the messages of one model, with its answer to the new one."""
        side, turns = conversation.sides[position], conversation.turns[position]
        chat.turns[:] = turns
        pieces: list[str] = []

        def passed_on(piece: str) -> None:
            pieces.append(piece)
            write({"side": position, "piece": piece})

        answer = chat.answer(message, "base" if side == "base" else "tuned", passed_on)
        written = "".join(pieces)
        if answer != written:  # what was streamed may have had a thought, or blanks at its ends
            write({"side": position, "text": answer})
        before = turns if chat.converses("base" if side == "base" else "tuned") else []
        return [*before, {"role": "user", "content": message}, {"role": "assistant", "content": answer}]

    def judge(self, conversation: Conversation, judge: str, content: Mapping[str, Any]) -> dict[str, str]:
        """Keep a verdict on a conversation and return who answered where (InputError: nothing was answered)."""
        if not all(conversation.turns.values()):
            raise InputError("there are no answers to judge yet.")
        line = {
            "format": 1,
            **{name: conversation.sides[name] for name in POSITIONS},
            "verdict": verdict_of(content),
            "note": note_of(content),
            "judge": judge,
            "time": now(),
            "blind": conversation.blind,
            "turns": conversation.turns,
        }
        append_line(self.run.path / TALKS, line)
        conversation.blind = False
        return dict(conversation.sides)

    def close(self) -> None:
        """Release the models."""
        if self._chat is not None:
            with suppress(Exception):
                self._chat.__exit__(None, None, None)


def _import() -> None:
    """Import what loading a run imports, which takes longer than the loading of a small model."""
    from ftengine import Chat, load_run  # noqa: F401
