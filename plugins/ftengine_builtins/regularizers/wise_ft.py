"""WiSE-FT: between the base and the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ftengine import api
from ftengine.api import LoadedModel, Regularizer, RegularizerTraits, Task
from ftengine.model import state_tensors
from ftengine_builtins.strategies.targets import inside


class WiseFT(Regularizer):
    """Interpolate between the weights before and after tuning, once it is done (WiSE-FT, Wortsman et al. 2022).

    Every trained tensor becomes (1 - α) θ₀ + α θ₁ (arXiv:2109.01903, §3). Modules that were newly initialised stay as
    trained, because there is no pre-trained state of theirs to go back to. Under full tuning that is the line between
    the two models. What a strategy added is interpolated along its own parameters: of lora, B starts at zero, so that
    the update at α is α B₁ ((1 - α) A₀ + α A₁), which is none at 0 and the tuned one at 1, but no straight line
    between; of prompt and prefix, α = 0 is where training began. `auto` chooses on validation, so that the validation
    loss of the choice is a little too good. The curve of validation loss (and of the loss on general data, where the
    recipe names some) is in training.json.
    """

    name = "wise-ft"
    paper = "Wortsman et al. 2022, Robust Fine-tuning of Zero-shot Models, arXiv:2109.01903"

    class Config(api.Config):
        alpha: Annotated[float, Field(ge=0, le=1, strict=True)] | Literal["auto"] = Field(
            "auto",
            description="share of the tuned weights, from 0 to 1; auto takes the best validation loss of the curve",
        )
        points: int = Field(11, ge=2, description="points of the curve, evenly from alpha 0 to 1")

    _start: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.traits = RegularizerTraits(needs_validation=self.config.alpha == "auto")

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        self._start = {
            name: tensor.detach().clone()
            for name, tensor in state_tensors(loaded.module).items()
            if tensor.is_floating_point() and not inside(name, loaded.new_modules)
        }

    def on_train_end(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        tensors = state_tensors(model)
        tuned = {name: tensors[name].detach().clone() for name in self._start}
        chosen = self.config.alpha
        curve = []
        for alpha in self._grid():
            self._move(tensors, tuned, alpha)
            if not (losses := measure()):
                break
            curve.append({"alpha": alpha, **losses})
        if chosen == "auto":  # of equals, the one nearest to the tuned model
            chosen = min(reversed(curve), key=lambda point: point["validation_loss"])["alpha"] if curve else 1.0
        self._move(tensors, tuned, chosen)
        return {"alpha": chosen, "curve": curve}

    def detach(self, loaded: LoadedModel) -> None:
        self._start = {}

    def _grid(self) -> list[float]:
        last = self.config.points - 1
        grid = {round(i / last, 6) for i in range(last + 1)}
        return sorted(grid if self.config.alpha == "auto" else grid | {float(self.config.alpha)})

    @torch.no_grad()
    def _move(self, tensors: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> None:
        """Set tensors to (1 - α) θ₀ + α θ₁, exactly θ₁ at 1."""
        for name, start in self._start.items():
            tensors[name].copy_(torch.lerp(start, tuned[name], alpha))
