"""A regularizer that adds a penalty to the loss.

`attach` sees a model without weights first and is detached again, so that what cannot work is refused before weights
are read; another object then sees the model itself. `LoadedModel.pretrained` names the base's parameters.
"""

from ftengine.api import Regularizer


class SmallWeights(Regularizer):
    """Pull trainable weights towards zero through the loss."""

    name = "small-weights"

    def penalty(self, model, batch, loss):
        return 1e-4 * sum(weight.square().sum() for weight in model.parameters() if weight.requires_grad)
