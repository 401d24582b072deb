"""The recipe's regularizers while a model trains: one object for the loop, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Batch, LoadedModel, Regularizer, Task


class Attached:
    """Regularizers attached to a model, in the recipe's order.

    Args:
        regularizers: they see the model at once.
        loaded: the model after `strategy.prepare`.
        task: the run's task.

    Raises:
        RecipeError: one of them cannot regularize this; those before it are detached again.
    """

    def __init__(self, regularizers: Sequence[Regularizer], loaded: LoadedModel, task: Task) -> None:
        self._loaded, self._attached = loaded, list[Regularizer]()
        try:
            for regularizer in regularizers:
                self._attached.append(regularizer)  # first, so that half an attachment is undone too
                regularizer.attach(loaded, task)
        except BaseException:
            self.detach()
            raise

    def penalty(self, batch: Batch, loss: Tensor) -> Tensor | None:
        """Return the sum of all penalties on a micro-batch, None where there is none.

        Args:
            loss: the task's mean loss of the micro-batch.
        """
        found = (r.penalty(self._loaded.module, batch, loss) for r in self._attached)
        penalties = [penalty for penalty in found if penalty is not None]
        return torch.stack(penalties).sum() if penalties else None

    def stepped(self, step: int) -> None:
        """Tell all of them of an optimiser step."""
        for regularizer in self._attached:
            regularizer.stepped(self._loaded.module, step)

    @property
    def evaluate_others(self) -> bool:
        """Whether one of them evaluates other weights than those that train."""
        return any(type(r).evaluating is not Regularizer.evaluating for r in self._attached)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give the model the weights that it would keep."""
        with ExitStack() as stack:
            for regularizer in self._attached:
                stack.enter_context(regularizer.evaluating(self._loaded.module))
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to hold, by place in the recipe and name."""
        return {
            f"{place}|{name}": tensor
            for place, regularizer in enumerate(self._attached)
            for name, tensor in regularizer.tensors().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `tensors` returned."""
        for place, regularizer in enumerate(self._attached):
            mark = f"{place}|"
            own = {key.removeprefix(mark): tensor for key, tensor in tensors.items() if key.startswith(mark)}
            if own or regularizer.tensors():  # some have nothing to keep before their first step
                regularizer.restore(own)

    def finish(self, module: nn.Module, measure: Callable[[], Mapping[str, float]]) -> list[dict[str, Any]]:
        """Let each of them change the weights that are kept; return what they report, for training.json.

        "needs_validation" says of each whether it chose by the validation loss.
        """
        return [
            {"name": r.name, "needs_validation": r.needs_validation, **r.finish(module, measure)}
            for r in self._attached
        ]

    def detach(self) -> None:
        """Undo all attachments, the last first; a second time does nothing."""
        while self._attached:
            self._attached.pop().detach(self._loaded)
