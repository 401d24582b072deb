"""Augmenters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

from ftengine.api.component import Component
from ftengine.api.task import Task
from ftengine.api.types import Batch, Example
from ftengine.errors import RecipeError


class RandomSource(Protocol):
    """The part of `random.Random` that augmenters use."""

    def random(self) -> float: ...
    def choice(self, seq: Sequence[Any]) -> Any: ...
    def randrange(self, start: int, stop: int | None = None) -> int: ...


class Augmenter(Component):
    """Makes training examples from a training example; never sees validation or test rows."""

    modality: ClassVar[str | None] = None
    """What it changes, "text" or "image"; None where it takes any example."""
    task: Task
    """The task whose examples it is given."""

    def bind(self, task: Task) -> None:
        """See the task, after it learnt its labels and before the first example.

        Raises:
            RecipeError: examples of this task are not of this augmenter's kind.
        """
        if self.modality is not None and self.modality != task.modality:
            raise RecipeError(
                f"augmenter {self.name!r} changes {self.modality}s, and examples of task {task.name!r} are "
                f"{task.modality}s. Take it out of the recipe."
            )
        self.task = task

    def bind_processor(self, processor: Any) -> None:
        """See the tokenizer or image processor, after `bind` and before the first example.

        Raises:
            RecipeError: it lacks what this augmenter needs of it.
        """

    def augment(self, example: Example, rng: RandomSource) -> Iterable[Example]:
        """Yield the examples that replace this one; `rng` is a function of (seed, epoch, row) alone.

        Where none of them can be encoded and trained on, the example stays as it is.
        """
        yield example

    def mix(self, batch: Batch, rng: RandomSource) -> Batch:
        """Return a collated training batch with its examples mixed; `rng` is a function of (seed, epoch, rows).

        Every micro-batch is mixed by itself.
        """
        return batch
