"""An optimizer that torch does not have: `step` reads `lr` and `weight_decay` from the group each time."""

import torch

from ftengine.api import Optimizer


class Signs(torch.optim.Optimizer):
    """w <- (1 - lr * weight_decay) w - lr * sign(m), m being a mean of gradients that decays by 0.9."""

    def __init__(self, param_groups):
        super().__init__(param_groups, {"lr": 1e-4, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 0.1)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.sign(), alpha=group["lr"])


class SignDescent(Optimizer):
    """The sign of the mean gradient alone, as in Lion (Chen et al. 2023)."""

    name = "signs"

    def build(self, param_groups):
        return Signs(param_groups)
