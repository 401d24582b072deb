"""What augmenters of single examples share: whether an example is changed at all, and what of it is handed out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from ftengine.api import Augmenter, Config, Example, RandomSource, Task
from ftengine.errors import RecipeError


class ChangeConfig(Config):
    """Options of every augmenter that changes examples one by one."""

    probability: float = Field(1.0, ge=0, le=1, description="share of examples that are changed, drawn in every epoch")


class SeldomConfig(ChangeConfig):
    """The same for changes that leave nothing of an example as it was: half of the examples stay."""

    probability: float = Field(0.5, ge=0, le=1, description="share of examples that are changed, drawn in every epoch")


class Rewriting(Augmenter):
    """Changes what the task hands out of an example; a subclass says how in `change`."""

    Config = ChangeConfig

    def bind(self, task: Task) -> None:
        super().bind(task)
        if type(task).rewrite is Task.rewrite:
            raise RecipeError(
                f"augmenter {self.name!r} cannot change examples of task {task.name!r}, which hands nothing of them "
                "out. Take it out of the recipe."
            )

    def augment(self, example: Example, rng: RandomSource) -> Iterable[Example]:
        if rng.random() < self.config.probability:
            example = self.task.rewrite(example, lambda value: self.change(value, rng))
        yield example

    def change(self, value: Any, rng: RandomSource) -> Any:
        """Return a text or an image in place of one."""
        raise NotImplementedError


class TextAugmenter(Rewriting):
    """Changes texts; a subclass says how in `rewritten`."""

    modality = "text"

    def change(self, value: str, rng: RandomSource) -> str:
        """Return the changed text; one of which nothing would be left stays as it is."""
        changed = self.rewritten(value, rng)
        return changed if changed.strip() else value

    def rewritten(self, text: str, rng: RandomSource) -> str:
        """Return a text in place of one that is not empty."""
        raise NotImplementedError
