"""Strategies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component
from ftengine.api.optimizer import ShardingTraits
from ftengine.api.types import LoadedModel
from ftengine.errors import NotMergeable

if TYPE_CHECKING:
    from torch import nn

    from ftengine.api.regularizer import Regularizer


@dataclass(frozen=True)
class StrategyTraits(ShardingTraits):
    """Facts about a strategy.

    Args:
        learning_rate: its usual one, which `ftengine init` proposes; None: the recipe's default.
    """

    learning_rate: float | None = None


class Strategy(Component):
    """Decides which parameters train. After `prepare`, requires_grad is the only truth."""

    traits: StrategyTraits = StrategyTraits()

    @abstractmethod
    def prepare(self, loaded: LoadedModel) -> None:
        """Add modules to `loaded.module` or freeze parts of it; requires_grad then decides what trains.

        `loaded.new_modules` need no attention: the engine makes them trainable afterwards. Raise NoMatch where a
        pattern matches no module; the message shows close names. Keep the object `loaded.module`, as tasks call its
        methods, such as `generate`. A layer that replaces another should keep the names of its parameters (`weight`,
        `bias`), so that checkpoints, merged models and patterns still fit.
        """

    # What some write.

    @property
    def starts_from(self) -> str | None:
        """The folder of a trained part that `prepare` starts from; None where it starts from the base.

        Losses with a reference then use the model with that part.
        """
        return None

    def matches(self) -> dict[str, list[str]]:
        """Return the modules that each pattern matched in `prepare`, for `ftengine plan`."""
        return {}

    def notes(self, loaded: LoadedModel) -> tuple[list[str], list[str]]:
        """Return sentences for `ftengine plan`: facts about what `prepare` made train, and warnings about the rest."""
        return [], []

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups over trainable parameters; `lr` is the given one or a multiple of it.

        By default, matrices decay and vectors (biases, norms) do not: `ftengine.model.default_param_groups`.
        """
        raise NotImplementedError("call ftengine.model.default_param_groups(model, learning_rate, weight_decay)")

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write the trained part to an existing empty directory, in its ecosystem's format.

        By default, every trainable tensor, and the statistics that move with them, go by name into
        `trained.safetensors` (`ftengine.model.save_trained`). The engine writes and reads tensors of
        `loaded.new_modules` that the files lack. A run ends with an error where its files, opened on a fresh base, give
        other outputs than `loaded`. Write it together with `load`.
        """
        raise NotImplementedError("call ftengine.model.save_trained(loaded.module, directory)")

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read back what `save` wrote into a model that `prepare` has changed.

        Raise BaseMismatch where keys are missing or unexpected, or a shape differs.
        """
        raise NotImplementedError("call ftengine.model.load_trained(loaded.module, directory)")

    def loading_options(self) -> dict[str, Any]:
        """Return the options, as JSON values, with which a finished run is opened again.

        By default those of the run, without `start_from`.
        """
        return self.config.model_dump(mode="json")

    def check_merge(self) -> None:
        """Raise NotMergeable, before any model is loaded, where these options have no merged form."""

    def merge(self, loaded: LoadedModel) -> None:
        """Fold the trained part into the base weights, leaving the original architecture.

        Raise NotMergeable where this base has no such form.
        """
        raise NotMergeable(f"strategy {self.name!r} has no merged form")

    def frozen_parameters(
        self, model: nn.Module, step: int, steps: int, steps_per_epoch: int
    ) -> Iterable[nn.Parameter]:
        """Return the trainable parameters that stay frozen in a step, for gradual unfreezing.

        Args:
            step: optimiser steps done before this one; the result is a function of the arguments alone.
            steps, steps_per_epoch: those of the whole run, and of a whole epoch.
        """
        return ()

    def regularizer(self, steps: int) -> Regularizer | None:
        """Return the regularizer that belongs to the method (a term in the loss, or work after each step), or None.

        It is attached before those of the recipe, to a skeleton and then to the model that `prepare` changed. Raise
        RecipeError where the options do not suit a run of `steps` optimiser steps.
        """
        return None

    def environment(self) -> dict[str, Any]:
        """Return how the strategy computes, as JSON, for environment.json.

        {what: {device type: {"backend": which, "reason": why}}} is shown, and recorded in training.json.
        """
        return {}
