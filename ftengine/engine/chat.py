"""A conversation with a run's model, its base, or both, generated as in the run's evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

from ftengine.api import LoadedModel, overrides
from ftengine.api.task_sorts import gives_prompts, writes_completions
from ftengine.chat import has_template
from ftengine.engine.finished import Run
from ftengine.engine.prepared_data import inferring
from ftengine.errors import DataError, InputError
from ftengine.generation import streaming

Side = Literal["tuned", "base"]

WRITTEN = "completion"
"""What a task's answer holds that writes text."""


class Chat:
    """A conversation that models answer turn by turn.

    It is a context manager, since it keeps models open.

    Args:
        options: generation options that replace those of the run's evaluation.

    Raises:
        InputError: the run's task writes no text, or reads recordings.
    """

    def __init__(self, run: Run, options: Mapping[str, Any] | None = None) -> None:
        self.run, self._task = run, run.task
        if not writes_completions(self._task) or not overrides(self._task, "infer"):
            raise InputError(
                f"task {self._task.name!r} writes no text, so it cannot chat. `ftengine predict` answers its rows."
            )
        if self._task.modality == "audio":
            raise InputError(
                f"task {self._task.name!r} reads recordings, so it cannot chat. `ftengine predict` transcribes them."
            )
        self._options = {**run.recipe.evaluation.generate.options, **(options or {})}
        self._opened = ExitStack()
        self._models: dict[Side, LoadedModel] = {}
        self.turns: list[dict[str, Any]] = []
        """The conversation so far, as messages; always empty where the model continues plain text."""
        self.images: list[str] = []
        """Paths of pictures that the next turn begins with."""

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def converses(self, side: Side) -> bool:
        """Return whether the model has a chat template; without one it continues each text by itself."""
        loaded = self._model(side)
        if self.reads_images or not has_template(loaded.processor):
            return self.reads_images and has_template(loaded.processor)
        if not gives_prompts(self._task):
            return False
        try:
            return self._task.prompt({"prompt": "Hello."}, loaded).messages is not None
        except DataError:  # arguments of the template, which other programs are not known to pass on
            return True

    @property
    def reads_images(self) -> bool:
        """Whether turns may have pictures."""
        return self._task.modality == "image"

    def attach(self, path: str) -> None:
        """Begin the next turn with a picture (InputError: the task reads none; DataError: nor this file)."""
        if not self.reads_images:
            raise InputError(f"task {self._task.name!r} reads no pictures.")
        self._task.check_input({"messages": [*self.turns, self._turn("", [path])]})
        self.images.append(path)

    def reset(self) -> None:
        """Begin a new conversation."""
        self.turns.clear()
        self.images.clear()

    def _turn(self, text: str, images: Sequence[str] = ()) -> dict[str, Any]:
        """Return a user's turn."""
        parts = [{"type": "image", "image": path} for path in images]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}

    def answer(self, text: str, side: Side, write: Callable[[str], None]) -> str:
        """Answer a user's turn, given the conversation so far; `keep` then adds both to the conversation.

        Args:
            write: called with each piece of text as soon as it is generated.

        Raises:
            DataError: the conversation does not fit the model, or its template refuses it.
        """
        loaded = self._model(side)
        row: dict[str, Any] = {"prompt": text}
        if self.converses(side):
            row = {"messages": [*self.turns, self._turn(text, self.images)]}
        self._task.check_input(row)
        pieces = _Pieces(loaded.processor, write)
        with streaming(pieces.add):
            [reply] = inferring(self._task).infer(loaded, [row], self._options)
        answer = str(reply[WRITTEN])
        if not pieces.ids and answer:  # the task's answers come whole
            write(answer)
        return answer

    def keep(self, text: str, answer: str) -> None:
        """Add a user's turn and its answer to the conversation; where the answer is empty, add neither."""
        if answer.strip():
            self.turns += [self._turn(text, self.images), {"role": "assistant", "content": answer}]
            self.images.clear()

    def _model(self, side: Side) -> LoadedModel:
        """Return a model; it is opened at the first call."""
        if side not in self._models:
            self._models[side] = self._opened.enter_context(self.run.model(base=side == "base"))
        return self._models[side]


class _Pieces:
    """Decodes tokens as they come into pieces of text that end with a complete character."""

    def __init__(self, processor: Any, write: Callable[[str], None]) -> None:
        self._processor, self._write = processor, write
        self.ids: list[int] = []
        self._written = 0

    def add(self, token: int) -> None:
        self.ids.append(token)
        text = self._processor.decode(self.ids, skip_special_tokens=True)
        if len(text) > self._written and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write(text[self._written :])
            self._written = len(text)
