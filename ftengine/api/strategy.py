"""Strategies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component
from ftengine.api.types import LoadedModel
from ftengine.errors import NotMergeable

if TYPE_CHECKING:
    from torch import nn


class Strategy(Component):
    """Decides which parameters train. After `prepare`, requires_grad is the only truth."""

    def prepare(self, loaded: LoadedModel) -> None:
        """Add modules to `loaded.module` or freeze parts of it, so that requires_grad says what trains.

        `loaded.new_modules` need no attention: the engine makes them trainable afterwards.

        Raises:
            NoMatch: a pattern matches no module; the message shows close names.
        """
        raise NotImplementedError

    def matches(self) -> dict[str, list[str]]:
        """Return the modules that each pattern matched in `prepare`, for `ftengine plan`."""
        return {}

    def environment(self) -> dict[str, Any]:
        """Return what a run should record of how this strategy computes (kernel path and the reason)."""
        return {}

    def reopened(self) -> dict[str, Any]:
        """Return the options under which a finished run is prepared again, e.g. without where it started from."""
        return self.config.model_dump(mode="json")

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups over trainable parameters.

        The default decays matrices and leaves vectors (biases, norms) alone.
        """
        from ftengine.model import default_param_groups

        return default_param_groups(model, learning_rate, weight_decay)

    def resting(self, model: nn.Module, step: int, steps: int, steps_per_epoch: int) -> Iterable[nn.Parameter]:
        """Return trainable parameters that are left out of a training step, as gradual unfreezing does.

        They train in other steps, so they count as trainable. The answer must follow from the arguments
        alone: a resumed run asks again.

        Args:
            model: the prepared model.
            step: optimiser steps done before this one.
            steps: all optimiser steps of the run.
            steps_per_epoch: those of a whole epoch.
        """
        return ()

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write the trained part to an existing empty directory, in its ecosystem's format.

        The default writes every trainable tensor, and the statistics that move with them, by name, to
        `trained.safetensors`.
        """
        from ftengine.model import save_trained

        save_trained(loaded.module, directory)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read back what `save` wrote into a model that `prepare` has seen.

        Raises:
            BaseMismatch: keys are missing or unexpected, or a shape differs.
        """
        from ftengine.model import load_trained

        load_trained(loaded.module, directory)

    def check_merge(self) -> None:
        """Refuse to merge before any model is loaded; by default where the class has no `merge` of its own.

        Raises:
            NotMergeable: this strategy, with these options, has no merged form.
        """
        if type(self).merge is Strategy.merge:
            raise _without_merge(self.name)

    def merge(self, loaded: LoadedModel) -> None:
        """Fold the trained part into the base weights, leaving the original architecture.

        Raises:
            NotMergeable: this strategy (or this base) has no such form.
        """
        raise _without_merge(self.name)


def _without_merge(name: str) -> NotMergeable:
    return NotMergeable(
        f"strategy {name!r} cannot be merged into its base: it changes more than weights. "
        "Serve the base with the trained part instead."
    )
