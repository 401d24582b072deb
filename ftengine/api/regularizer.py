"""Regularizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import Component
from ftengine.api.task import Task
from ftengine.api.types import Batch, LoadedModel

if TYPE_CHECKING:
    import torch
    from torch import nn


class Regularizer(Component):
    """Adds a penalty to the loss, or changes the model while it trains.

    Randomness comes from torch's global generators, which the loop seeds for every step.
    """

    needs_validation: bool = False
    """Whether it cannot do without a validation split; may depend on the options."""
    replaces_weight_decay: ClassVar[bool] = False
    """Whether it pulls weights somewhere itself, so that `train.weight_decay` has to be 0 beside it."""

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        """See the model, after the strategy prepared it and before the first step.

        It is called on a skeleton (parameters on the meta device) as well, and detached again, so that what cannot
        work is refused before weights are read; another object then sees the model itself.

        Raises:
            RecipeError: this model or task cannot be regularized so.
        """

    def penalty(self, model: nn.Module, batch: Batch, loss: torch.Tensor) -> torch.Tensor | None:
        """Return a scalar that is added to the mean loss of a micro-batch, or None for nothing.

        The loop weights it as that loss, by the micro-batch's share of the effective batch: what does not depend on
        the batch counts exactly once a step, and a mean over examples (or labels) becomes one over all of them.
        """
        return None

    def stepped(self, model: nn.Module, step: int) -> None:
        """See the model after an optimiser step; `step` counts from 1."""

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give the model the weights that it would keep, while it is validated and its best weights are saved."""
        return nullcontext()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint has to hold for this regularizer, by name; `restore` takes it back."""
        return {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set what `tensors` returned when the checkpoint was written."""

    def finish(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Change the weights that are kept, after the last step; return what a reader should know (JSON values).

        Args:
            model: with the weights that training would keep.
            measure: measures the model as it is now, lower is better: {"validation_loss": …}, and "general_loss"
                where the recipe names general data to watch for forgetting; empty without validation.
        """
        return {}

    def detach(self, loaded: LoadedModel) -> None:
        """Undo `attach` (hooks, wrapped modules) before the model is saved, and when training fails."""
