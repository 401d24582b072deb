"""Augmenters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, Field

from ftengine.api.component import Component, Config
from ftengine.api.task import Task
from ftengine.api.types import Batch, Example


class RandomSource(Protocol):
    """The part of `random.Random` that augmenters use."""

    def random(self) -> float: ...
    def choice(self, seq: Sequence[Any]) -> Any: ...
    def randrange(self, start: int, stop: int | None = None) -> int: ...


class Augmenter(Component):
    """Makes training examples from a training example; never sees validation or test rows.

    It keeps nothing from one row to the next. Most change the inputs of a row and derive from `TextAugmenter` or
    `InputAugmenter`; those that mix whole batches (`mix`) leave single rows as they are.
    """

    modality: ClassVar[str | None] = None
    """What it changes, as `Task.modality`: "text", "image" or "audio"; None where it takes any example."""

    ablates: ClassVar[bool] = False
    """Whether it takes away what answers need, such as a picture, so that worse figures under it are wanted: in
    `evaluation.robustness` it then measures whether the model uses that."""

    def augment(self, row: Example, task: Task, rng: RandomSource) -> Iterable[Example]:
        """Yield the rows that replace this one, which itself stays as it is.

        Where none of them can be encoded and trained on, the row is used as it is.

        Args:
            row: a row that `task` takes.
            task: its `view` and `with_inputs` know the row's columns; its labels are bound.
            rng: a function of (seed, epoch, row) alone.
        """
        yield row

    def set_processor(self, processor: Any) -> None:
        """Receive the tokenizer or image processor before the first example.

        Raise RecipeError where it lacks something.
        """

    def mix(self, batch: Batch, task: Task, rng: RandomSource) -> Batch:
        """Return a collated training batch with its examples mixed, every micro-batch by itself.

        `rng` is a function of (seed, epoch, rows).
        """
        return batch

    def check_mix(self, task: Task) -> None:
        """Raise RecipeError where batches of this task cannot be mixed; the task has learnt its labels."""


class AugmenterConfig(Config):
    """Options of every augmenter that changes inputs."""

    probability: float = Field(1.0, ge=0, le=1, description="share of examples that are changed, drawn in every epoch")


class InputAugmenter(Augmenter):
    """Changes each input of a row by itself; a subclass says how in `change`. Answers and labels stay."""

    Config: ClassVar[type[BaseModel]] = AugmenterConfig
    """Options; a subclass that has its own derives them from `AugmenterConfig`."""

    def augment(self, row: Example, task: Task, rng: RandomSource) -> Iterable[Example]:
        if rng.random() < self.config.probability:
            row = task.with_inputs(row, [self._changed(value, rng) for value in task.view(row).inputs])
        yield row

    @abstractmethod
    def change(self, value: Any, rng: RandomSource) -> Any:
        """Return the replacement of an input: a text for a text, a PIL image for an image, audio for audio.

        Texts given are never blank; where a blank text is returned, the original is used.
        """

    def _changed(self, value: Any, rng: RandomSource) -> Any:
        changed = self.change(value, rng)
        if changed is None or isinstance(changed, str) != isinstance(value, str):
            kind, got = "a text" if isinstance(value, str) else "an image", repr(changed)[:60]
            raise TypeError(f"change() of augmenter {self.name!r} returned {got} for {kind}; it must return {kind}")
        return value if isinstance(changed, str) and not changed.strip() else changed


class TextAugmenter(InputAugmenter):
    """Changes texts."""

    modality = "text"
