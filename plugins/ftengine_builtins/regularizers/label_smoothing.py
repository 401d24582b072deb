"""Label smoothing: targets that leave a little probability to the other classes."""

from __future__ import annotations

from pydantic import Field

from ftengine.api import Config, LoadedModel, Regularizer, Task
from ftengine.errors import RecipeError


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
        if not task.smooths:
            kind = f" with kind: {task.labels.kind}" if task.labels else ""
            raise RecipeError(
                f"regularizer label-smoothing needs classes to predict; task {task.name!r}{kind} has none. Take it "
                "out of the recipe."
            )
        self._task = task
        task.label_smoothing = self.config.epsilon

    def detach(self, loaded: LoadedModel) -> None:
        if task := vars(self).pop("_task", None):
            task.label_smoothing = 0.0
