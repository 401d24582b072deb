"""Label smoothing: targets that leave a little probability to the other classes."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ftengine.api import Config, Criterion, LoadedModel, Regularizer, Task
from ftengine_builtins.regularizers.distributions import require_distributions


class LabelSmoothingConfig(Config):
    """Options of label smoothing."""

    epsilon: float = Field(0.1, gt=0, lt=1, description="share of the target's probability spread over all classes")


class LabelSmoothing(Regularizer):
    """Spread a share of the target's probability over all classes (label smoothing, Szegedy et al. 2016).

    The target y becomes (1 - ε) y + ε / K over K classes (arXiv:1512.00567, §7), as in torch's cross_entropy; with
    several labels an example, each is a choice between two. Only the loss that trains is smoothed.
    """

    name = "label-smoothing"
    starter = True
    Config = LabelSmoothingConfig
    citation = "Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567"

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        require_distributions(task, self.name)

    def criterion(self, plain: Criterion) -> Criterion:
        return _Smoothed(plain, self.config.epsilon)


class _Smoothed(Criterion):
    """A criterion with a share ε of its targets spread over all classes, which are probabilities then."""

    def __init__(self, plain: Criterion, epsilon: float) -> None:
        self.passes, self._plain, self._epsilon = plain.passes, plain, epsilon

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        share = self._epsilon / logits[0].shape[1]
        if targets.is_floating_point():
            smoothed = targets * (1 - self._epsilon) + share
        else:
            smoothed = torch.full_like(logits[0], share).scatter_(1, targets[:, None], 1 - self._epsilon + share)
        return self._plain.single(smoothed, *logits)

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return self._plain.multi(targets * (1 - self._epsilon) + self._epsilon / 2, *logits)

    def regression(self, targets: Tensor, *outputs: Tensor) -> Tensor:
        return self._plain.regression(targets, *outputs)
