"""Regularizers that train on another criterion: label smoothing, and R-Drop's two passes."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ftengine import api
from ftengine.api import LoadedModel, Regularizer, RegularizerTraits, Task, usual
from ftengine.errors import RecipeError
from ftengine.model import Criterion
from ftengine_builtins.regularizers.randomness import is_random


class LabelSmoothing(Regularizer):
    """Spread a share of the target's probability over all classes (label smoothing, Szegedy et al. 2016).

    The target y becomes (1 - ε) y + ε / K over K classes (arXiv:1512.00567, §7), as in torch's cross_entropy; with
    several labels an example, each is a choice between two. Only the loss that trains is smoothed.
    """

    name = "label-smoothing"
    traits = RegularizerTraits(is_default=True, supports_sharding=True)
    paper = "Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567"

    class Config(api.Config):
        epsilon: float = Field(
            0.1,
            gt=0,
            lt=1,
            description="share of the target's probability spread over all classes",
            json_schema_extra=usual(0, 0.4),
        )

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


class RDrop(Regularizer):
    """Make two passes with different dropout agree (R-Drop, Liang et al. 2021).

    The loss becomes that of both passes, -log P₁ - log P₂, plus alpha · ½ [KL(P₁‖P₂) + KL(P₂‖P₁)] (arXiv:2106.14448,
    §2), for every example or, of language models, every token that is trained on. The logged loss is this sum.
    A step takes about twice the time, and holds the activations of two passes.
    """

    name = "r-drop"
    traits = RegularizerTraits(supports_sharding=True)
    paper = "Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv:2106.14448"

    class Config(api.Config):
        alpha: float = Field(
            1.0,
            gt=0,
            description="weight of the divergence; the paper takes 0.1 to 5, by task",
            json_schema_extra=usual(0.01, 20),
        )

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        require_distributions(task, self.name)
        self._loaded = loaded

    def criterion(self, plain: Criterion) -> Criterion:
        if not is_random(self._loaded):
            model = type(self._loaded.module).__name__
            raise RecipeError(
                f"regularizer r-drop compares two passes with different dropout, but {model} has none, so both would "
                "be equal. Set regularizer dropout or strategy.dropout above 0, or add neftune or mixout."
            )
        return _TwoPasses(plain, self.config.alpha)

    def detach(self, loaded: LoadedModel) -> None:
        self._loaded = None


class _TwoPasses(Criterion):
    """The losses of two passes, plus alpha times their divergence."""

    passes = 2

    def __init__(self, plain: Criterion, alpha: float) -> None:
        self._plain, self._alpha = plain, alpha

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        first, second = (self._plain.single(targets, output) for output in logits)
        return first + second + self._alpha * divergence(*logits)

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        first, second = (self._plain.multi(targets, output) for output in logits)
        return first + second + self._alpha * binary_divergence(*logits)


def require_distributions(task: Task, regularizer: str) -> None:
    """Refuse a task that predicts no probabilities (RecipeError)."""
    if not task.predicts_probabilities:
        kind = f" with kind: {task.labels.kind}" if task.labels else ""
        raise RecipeError(
            f"regularizer {regularizer} works on the probabilities of classes, but task {task.name!r}{kind} predicts "
            "none. Remove it from the recipe."
        )


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return (n,) halves of KL(p‖q) + KL(q‖p) = Σ (p - q)(log p - log q) for the (n, K) logits of p and q."""
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return 0.5 * ((torch.exp(log_p) - torch.exp(log_q)) * (log_p - log_q)).sum(dim=-1)


def binary_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return (n,) means over (n, K) choices between two of the same, from their logits."""
    return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(dim=1)
