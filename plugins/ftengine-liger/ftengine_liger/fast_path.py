"""Modules that compute by Liger's kernels while a model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import nn

from ftengine import api
from ftengine.errors import RecipeError


class Liger(api.FastPath):
    """RMS norms and gated feed-forward blocks by Liger's kernels, on a GPU.

    Modules are found by what they compute, whatever their names, on the first batch; a kernel is compared with
    PyTorch's own steps, values and gradients, and left out where they differ by more than rounding.
    """

    name = "liger"
    paper = "Hsu et al. 2024, Liger Kernel: Efficient Triton Kernels for LLM Training, arXiv:2410.10989"

    class Config(api.Config):
        """What a recipe may set."""

        norms: bool = Field(True, description="compute RMS norms")
        gates: bool = Field(True, description="compute SwiGLU and GeGLU: activation(gate(x)) * up(x)")

    def check_device(self, device: torch.device) -> None:
        from ftengine_liger.kernels import serves

        if not serves(device):
            raise RecipeError(f"fast path 'liger' needs a GPU of NVIDIA, and the model computes on {device}")

    @contextmanager
    def activate(self, loaded: api.LoadedModel, context: api.TrainingContext) -> Iterator[Mapping[str, int] | None]:
        """Give modules that may be norms or gated blocks another `forward`; what it yields counts those that are.

        Where no kernel runs and one failed, the first error ends it.
        """
        from ftengine_liger.modules import GatedBlock, Norm, Outcome

        outcome, changed = Outcome(), list[nn.Module]()
        kinds = [kind for kind, wanted in ((Norm, self.config.norms), (GatedBlock, self.config.gates)) if wanted]
        try:
            for module in loaded.module.modules():
                kind = next((kind for kind in kinds if kind.may_be(module)), None)
                if kind is not None and "forward" not in vars(module):
                    vars(module)["forward"] = kind(module, outcome).forward
                    changed.append(module)
            yield outcome.modules if changed else None
            if outcome.errors and not outcome.modules:
                raise outcome.errors[0]
        finally:
            for module in changed:
                vars(module).pop("forward", None)
