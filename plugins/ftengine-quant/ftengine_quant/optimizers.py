"""Optimisers that keep their state in 8 bits."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from ftengine import api
from ftengine.errors import RecipeError

Share = Annotated[float, Field(ge=0, lt=1)]

DEVICES = ("cpu", "cuda", "xpu", "meta")
"""Kinds of device for which bitsandbytes has the step; on meta, state is made to be counted."""


class AdamW8bit(api.Optimizer):
    """AdamW with both moments in 8 bits, by bitsandbytes: a quarter of the memory for matrices of 4,096 elements on."""

    name = "adamw-8bit"
    paper = "Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861"

    class Config(api.Config):
        """Options of Adam's step."""

        betas: tuple[Share, Share] = Field((0.9, 0.999), description="decay of the means of gradients and squares")
        eps: float = Field(1e-8, gt=0, description="added to the denominator")
        min_8bit_size: int = Field(4096, ge=1, description="parameters with fewer elements keep float32 moments")

    def build(self, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW

        types = {parameter.device.type for group in param_groups for parameter in group["params"]}
        if not types <= set(DEVICES):
            raise RecipeError(
                f"train.optimizer: adamw-8bit does not run on {', '.join(sorted(types - set(DEVICES)))}; bitsandbytes "
                f"has its step for {', '.join(DEVICES[:-1])}. Use adamw."
            )
        config = self.config
        return AdamW(param_groups, betas=config.betas, eps=config.eps, optim_bits=8, min_8bit_size=config.min_8bit_size)
