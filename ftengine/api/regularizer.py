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
        by_tokens: its penalty is a mean over all tokens, so a micro-batch counts by its share of the effective batch's
            tokens, and not of the loss's weight.
    """

    needs_validation: bool = False
    replaces_weight_decay: bool = False
    by_tokens: bool = False


class Regularizer(Component):
    """Adds a penalty to the loss, or changes the model while it trains. All its methods are optional.

    Randomness comes from torch's global generators, which the loop seeds for every step.
    """

    traits: RegularizerTraits = RegularizerTraits()

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        """Receive the model, after the strategy prepared it and before the first step.

        It is first called on a skeleton (parameters on the meta device), and detached again, so that unsuitable models
        are refused (RecipeError) before weights are read; another object then receives the model itself.
        """

    def detach(self, loaded: LoadedModel) -> None:
        """Undo `attach` (hooks, wrapped modules) before the model is saved, and when training fails."""

    def penalty(self, model: nn.Module, batch: Batch, loss: torch.Tensor) -> torch.Tensor | None:
        """Return a scalar that is added to the mean loss of a micro-batch, or None for nothing.

        The loop weights it by the micro-batch's share of the effective batch: a term that does not depend on the batch
        counts once a step, and a mean over examples (or labels) becomes one over all of them; see `by_tokens`.
        """
        return None

    def criterion(self, plain: Criterion) -> Criterion:
        """Return the criterion to train on, which may wrap `plain`, the criterion without this regularizer.

        It works element by element: the loss of a label or token may depend on its own logits (of each pass) and target
        alone, because tasks call it for parts of a batch.

        Called once all regularizers are attached, on a skeleton too; raises RecipeError as `attach` does.
        """
        return plain

    def on_step_end(self, model: nn.Module, step: int) -> None:
        """Act after an optimiser step; parameters still hold their gradients, and `step` counts from 1.

        Under float16 a step with gradients that are not finite is skipped, and the model is unchanged.
        """

    def averaged_weights(self, model: nn.Module) -> AbstractContextManager[None]:
        """Put averaged weights into the model while it is validated and its best weights are saved."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return tensors by name that a checkpoint must hold; `load_state_dict` restores them."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned when the checkpoint was written."""

    def on_train_end(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Change the final weights after the last step; return facts for training.json (JSON values).

        Args:
            model: the model with the weights that training would keep.
            measure: returns losses of the model in its present state, lower is better: {"validation_loss": …}, and
                "general_loss" if the recipe names general data; empty without validation.
        """
        return {}
