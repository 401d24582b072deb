"""The base's own parameters that train."""

from __future__ import annotations

from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.model import trainable


def pretrained_trained(loaded: LoadedModel, regularizer: str, advice: str) -> dict[str, nn.Parameter]:
    """Return the base's own parameters that train, by name (RecipeError: there are none)."""
    parameters = {name: p for name, p in trainable(loaded.module).items() if name in loaded.pretrained}
    if not parameters:
        raise RecipeError(
            f"regularizer {regularizer} keeps trained weights near the pre-trained ones, but this strategy trains only "
            f"new weights and leaves the base frozen. {advice}"
        )
    return parameters
