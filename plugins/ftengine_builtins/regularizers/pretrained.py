"""What of a model's trained parameters came with the base."""

from __future__ import annotations

from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.model import trainable


def pretrained_trained(loaded: LoadedModel, regularizer: str, advice: str) -> dict[str, nn.Parameter]:
    """Return the parameters that came with the base and train, by name. Raises RecipeError where there are none."""
    parameters = {name: p for name, p in trainable(loaded.module).items() if name in loaded.pretrained}
    if not parameters:
        raise RecipeError(
            f"regularizer {regularizer} keeps pre-trained weights near where they started, and with this strategy none "
            f"trains: what trains was added to the model, and the base stays as it is. {advice}"
        )
    return parameters
