"""Regularizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component
from ftengine.api.optimizer import ShardingTraits
from ftengine.api.task import Task
from ftengine.api.types import Batch, LoadedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftengine.model import Criterion


@dataclass(frozen=True)
class RegularizerTraits(ShardingTraits):
    """Facts about a regularizer.

    Args:
        needs_validation: its `on_train_end` chooses by the validation loss.
        replaces_weight_decay: it pulls weights somewhere itself, so that `train.weight_decay` has to be 0 beside it.
    """

    needs_validation: bool = False
    replaces_weight_decay: bool = False


class Regularizer(Component):
    """Adds a penalty to the loss, or changes the model while it trains. All its methods are optional.

    Randomness comes from torch's global generators, which the loop seeds for every step.
    """

    traits: RegularizerTraits = RegularizerTraits()

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        """See the model, after the strategy prepared it and before the first step.

        It is called on a skeleton (parameters on the meta device) as well, and detached again, so that what cannot work
        is refused (RecipeError) before weights are read; another object then sees the model itself.
        """

    def detach(self, loaded: LoadedModel) -> None:
        """Undo `attach` (hooks, wrapped modules) before the model is saved, and when training fails."""

    def penalty(self, model: nn.Module, batch: Batch, loss: torch.Tensor) -> torch.Tensor | None:
        """Return a scalar that is added to the mean loss of a micro-batch, or None for nothing.

        The loop weights it as that loss, by the micro-batch's share of the effective batch: what does not depend on
        the batch counts exactly once a step, and a mean over examples (or labels) becomes one over all of them.
        """
        return None

    def criterion(self, plain: Criterion) -> Criterion:
        """Return the criterion to train on; `plain` is what would be used without this regularizer, to be wrapped.

        Called once all regularizers are attached, as `attach` on a skeleton too; raises RecipeError as that does.
        """
        return plain

    def on_step_end(self, model: nn.Module, step: int) -> None:
        """See the model after an optimiser step, with its gradients as `BeforeStep` has them; `step` counts from 1.

        Under float16 a step whose gradients are not finite was left out, and the model is as before.
        """

    def averaged_weights(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give the model the weights that it would keep, while it is validated and its best weights are saved."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint must hold, by name; `load_state_dict` takes them back."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set what `state_dict` returned when the checkpoint was written."""

    def on_train_end(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Change the weights that are kept, after the last step; return what a reader should know (JSON values).

        Args:
            model: with the weights that training would keep.
            measure: measures the model as it is now, lower is better: {"validation_loss": …}, and "general_loss"
                where the recipe names general data to watch for forgetting; empty without validation.
        """
        return {}
