"""Strategies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component
from ftengine.api.types import LoadedModel

if TYPE_CHECKING:
    from torch import nn


class Strategy(Component):
    """Decides which parameters train. After `prepare`, requires_grad is the only truth.

    Abilities: Merges, References, FreezesByStep, Regularizes, ReportsEnvironment, Reopens.
    """

    def prepare(self, loaded: LoadedModel) -> None:
        """Add modules to `loaded.module` or freeze parts of it, so that requires_grad says what trains.

        `loaded.new_modules` need no attention: the engine makes them trainable afterwards. Raise NoMatch where a
        pattern matches no module; the message shows close names.
        """
        raise NotImplementedError

    def matches(self) -> dict[str, list[str]]:
        """Return the modules that each pattern matched in `prepare`, for `ftengine plan`."""
        return {}

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups over trainable parameters.

        The default decays matrices and leaves vectors (biases, norms) alone.
        """
        from ftengine.model import default_param_groups

        return default_param_groups(model, learning_rate, weight_decay)

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write the trained part to an existing empty directory, in its ecosystem's format.

        The default writes every trainable tensor, and the statistics that move with them, by name, to
        `trained.safetensors`. What the files lack of `loaded.new_modules` the engine writes beside them, and reads
        back. A run ends with an error where its files, opened on a fresh base, give other outputs than `loaded`.
        """
        from ftengine.model import save_trained

        save_trained(loaded.module, directory)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read back what `save` wrote into a model that `prepare` has seen.

        Raise BaseMismatch where keys are missing or unexpected, or a shape differs.
        """
        from ftengine.model import load_trained

        load_trained(loaded.module, directory)
