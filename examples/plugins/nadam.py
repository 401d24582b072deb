"""An optimizer that torch has.

A group has `params`, `lr` (the peak, which the engine moves in the groups of what is returned) and `weight_decay`: pass
the groups on as they are. Checkpoints hold the optimiser's `state` and its groups: tensors, numbers and text, in lists
and mappings. What it keeps elsewhere is lost on `--resume`.
"""

from pydantic import Field

from ftengine.api import Config, Optimizer


class NAdam(Optimizer):
    """Adam with Nesterov momentum (Dozat 2016)."""

    name = "nadam"

    class Config(Config):
        momentum_decay: float = Field(4e-3, ge=0, description="how fast the momentum is warmed up")

    def build(self, param_groups):
        import torch

        return torch.optim.NAdam(param_groups, momentum_decay=self.config.momentum_decay, decoupled_weight_decay=True)
