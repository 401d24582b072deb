"""R-Drop: two passes with different dropout are to say the same."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ftengine.api import Batch, Config, LoadedModel, Regularizer, Task
from ftengine.errors import RecipeError
from ftengine_builtins.regularizers.randomness import is_random


class RDropConfig(Config):
    """Options of R-Drop."""

    alpha: float = Field(1.0, gt=0, description="weight of the divergence; the paper takes 0.1 to 5, by task")


class RDrop(Regularizer):
    """Make two passes with different dropout say the same (R-Drop, Liang et al. 2021).

    The loss becomes that of both passes, -log P₁ - log P₂, plus alpha · ½ [KL(P₁‖P₂) + KL(P₂‖P₁)] (arXiv:2106.14448,
    §2), for every example or, of language models, every token that is trained on. The logged penalty is what
    comes on top of the first pass's loss. A step takes about twice the time, and holds the activations of two passes.
    """

    name = "r-drop"
    Config = RDropConfig
    citation = "Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv:2106.14448"

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        if not task.compares:
            kind = f" with kind: {task.labels.kind}" if task.labels else ""
            raise RecipeError(
                f"regularizer r-drop compares distributions, and task {task.name!r}{kind} predicts none. Take it out "
                "of the recipe."
            )
        if not is_random(loaded):
            raise RecipeError(
                f"regularizer r-drop compares two passes with different dropout, and {type(loaded.module).__name__} "
                "has none, so that both would be equal. Put regularizer dropout (or neftune, mixout) before it in the "
                "list, or set strategy.dropout."
            )
        self._task = task
        task.keeps_pass = True

    def penalty(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor:
        again, divergence = self._task.divergence(model, batch)
        return again + self.config.alpha * divergence

    def detach(self, loaded: LoadedModel) -> None:
        if task := vars(self).pop("_task", None):
            task.keeps_pass = False
