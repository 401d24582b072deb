"""Modules that compute by Liger's kernels while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ftengine import api
from ftengine.errors import RecipeError

HELP = "Take regularizer liger out of the recipe."


class Liger(api.Regularizer):
    """Compute RMS norms and gated feed-forward blocks by Liger's kernels, on a GPU, while the model trains.

    Modules are found by what they compute, whatever their names, on the first batch; a kernel is compared with
    PyTorch's own steps, values and gradients, and left out where they differ by more than rounding.
    """

    name = "liger"
    paper = "Hsu et al. 2024, Liger Kernel: Efficient Triton Kernels for LLM Training, arXiv:2410.10989"
    traits = api.RegularizerTraits(needs_validation=False)

    class Config(api.Config):
        """What a recipe may set."""

        norms: bool = Field(True, description="compute RMS norms")
        gates: bool = Field(True, description="compute SwiGLU and GeGLU: activation(gate(x)) * up(x)")

    _changed: Sequence[nn.Module] = ()

    def attach(self, loaded: api.LoadedModel, task: api.Task) -> None:
        """Give modules that may be norms or gated blocks another `forward` (RecipeError: no GPU, or none there)."""
        from ftengine_liger.kernels import serves
        from ftengine_liger.modules import Found, GatedBlock, Norm

        self._found, changed = Found(), list[nn.Module]()
        self._changed = changed
        device = next(loaded.module.parameters()).device
        if not serves(torch.device("cuda") if device.type == "meta" and torch.cuda.is_available() else device):
            meta, none = device.type == "meta", "this machine has none that PyTorch can use"
            here = none if meta else f"the model is on {device}"
            raise RecipeError(f"regularizer liger needs a GPU, and {here}. {HELP}")
        kinds = [kind for kind, wanted in ((Norm, self.config.norms), (GatedBlock, self.config.gates)) if wanted]
        for module in loaded.module.modules():
            kind = next((kind for kind in kinds if kind.may_be(module)), None)
            if kind is not None and "forward" not in vars(module):
                vars(module)["forward"] = kind(module, self._found).forward
                changed.append(module)
        if not changed:
            raise RecipeError(
                f"regularizer liger finds nothing in {type(loaded.module).__name__} that it could compute: no RMS "
                f"norms, and no feed-forward blocks of three linear layers and an activation. {HELP}"
            )

    def penalty(self, model: nn.Module, batch: api.Batch, loss: Tensor) -> None:
        """Add nothing (RecipeError: the first batch shows that no module computes what the kernels do)."""
        if not self._found.modules:
            why = f" A kernel failed: {error}." if (error := next(iter(self._found.errors), None)) else ""
            raise RecipeError(
                f"regularizer liger found no module in {type(model).__name__} that computes what Liger's kernels do, "
                f"of {len(self._changed)} that it tried.{why} {HELP}"
            )

    def detach(self, loaded: api.LoadedModel) -> None:
        """Let the modules compute as they did."""
        for module in self._changed:
            vars(module).pop("forward", None)
        self._changed = ()

    def on_train_end(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Change nothing; tell how many modules the kernels computed."""
        return dict(self._found.modules)
