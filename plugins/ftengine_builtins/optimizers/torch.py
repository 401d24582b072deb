"""Optimisers of torch."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from ftengine.api import Config, Optimizer, ShardingTraits, usual

Groups = list[dict[str, Any]]


class AdamConfig(Config):
    """Options of Adam's step."""

    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the means of gradients and their squares")
    eps: float = Field(1e-8, gt=0, description="added to the denominator", json_schema_extra=usual(1e-16, 1e-4))

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1")
        return betas


class AdamW(Optimizer):
    """Adam with decoupled weight decay, the default."""

    name = "adamw"
    traits = ShardingTraits(is_default=True, supports_sharding=True)
    Config = AdamConfig
    paper = "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101"

    def build(self, param_groups: Groups) -> torch.optim.Optimizer:
        parameters = [parameter for group in param_groups for parameter in group["params"]]
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.AdamW(param_groups, betas=self.config.betas, eps=self.config.eps, fused=fused)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum; weight decay is added to the gradient."""

    name = "sgd"
    traits = ShardingTraits(supports_sharding=True)

    class Config(Config):
        momentum: float = Field(0.9, ge=0, lt=1, description="momentum factor")
        nesterov: bool = Field(False, description="use Nesterov momentum")

        @field_validator("nesterov")
        @classmethod
        def _ahead_of_something(cls, nesterov: bool, info: ValidationInfo) -> bool:
            if nesterov and not info.data.get("momentum", True):
                raise ValueError("nesterov needs momentum; set momentum above 0, or nesterov to false")
            return nesterov

    def build(self, param_groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(param_groups, momentum=self.config.momentum, nesterov=self.config.nesterov)


class Adafactor(Optimizer):
    """Adam with a factored second moment and no first moment, which needs little memory.

    The learning rate is relative to the size of each parameter, and at most 1/√step.
    """

    name = "adafactor"
    paper = "Shazeer and Stern 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235"

    class Config(Config):
        beta2_decay: float = Field(
            -0.8, le=0, description="exponent of the second moment's decay, which is 1 - step^beta2_decay"
        )
        eps: float = Field(1e-3, gt=0, description="lower bound on a parameter's scale")
        clip: float = Field(1.0, ge=1, description="an update with a larger root mean square is clipped to this")

    def build(self, param_groups: Groups) -> torch.optim.Optimizer:
        config = self.config
        options = {"beta2_decay": config.beta2_decay, "eps": (None, config.eps), "d": config.clip}
        return torch.optim.Adafactor(param_groups, **options)
