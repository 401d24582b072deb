"""Regularizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        """See the model, after the strategy prepared it and before the first step.

        It is called on a skeleton (parameters on the meta device) as well, and detached again, so that what cannot work
        is refused (RecipeError) before weights are read; another object then sees the model itself.
        """

    def penalty(self, model: nn.Module, batch: Batch, loss: torch.Tensor) -> torch.Tensor | None:
        """Return a scalar that is added to the mean loss of a micro-batch, or None for nothing.

        The loop weights it as that loss, by the micro-batch's share of the effective batch: what does not depend on
        the batch counts exactly once a step, and a mean over examples (or labels) becomes one over all of them.
        """
        return None

    def detach(self, loaded: LoadedModel) -> None:
        """Undo `attach` (hooks, wrapped modules) before the model is saved, and when training fails."""
