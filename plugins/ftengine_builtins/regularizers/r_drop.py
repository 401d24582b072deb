"""R-Drop: two passes with different dropout are to say the same."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ftengine.api import Config, Criterion, LoadedModel, Regularizer, Task
from ftengine.errors import RecipeError
from ftengine_builtins.regularizers.distributions import binary_divergence, divergence, require_distributions
from ftengine_builtins.regularizers.randomness import is_random


class RDropConfig(Config):
    """Options of R-Drop."""

    alpha: float = Field(1.0, gt=0, description="weight of the divergence; the paper takes 0.1 to 5, by task")


class RDrop(Regularizer):
    """Make two passes with different dropout say the same (R-Drop, Liang et al. 2021).

    The loss becomes that of both passes, -log P₁ - log P₂, plus alpha · ½ [KL(P₁‖P₂) + KL(P₂‖P₁)] (arXiv:2106.14448,
    §2), for every example or, of language models, every token that is trained on. All of it is the loss that is logged.
    A step takes about twice the time, and holds the activations of two passes.
    """

    name = "r-drop"
    Config = RDropConfig
    citation = "Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv:2106.14448"

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        require_distributions(task, self.name)
        self._loaded = loaded

    def criterion(self, plain: Criterion) -> Criterion:
        if not is_random(self._loaded):
            model = type(self._loaded.module).__name__
            raise RecipeError(
                f"regularizer r-drop compares two passes with different dropout, and {model} has none, "
                "so that both would be equal. Set regularizer dropout above 0, add neftune or mixout, or set "
                "strategy.dropout."
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
        first, second = (self._plain.single(targets, one) for one in logits)
        return first + second + self._alpha * divergence(*logits)

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        first, second = (self._plain.multi(targets, one) for one in logits)
        return first + second + self._alpha * binary_divergence(*logits)
