"""Muon for matrices and AdamW for other parameters, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from ftengine.api import Optimizer
from ftengine_builtins.optimizers.torch import AdamConfig, Groups


class Muon(Optimizer):
    """Orthogonalised momentum for matrices, AdamW for all other parameters.

    Updates are scaled to the size of AdamW's, so both use one learning rate (Liu et al. 2025, arXiv:2502.16982). Muon
    is meant for hidden layers; if a strategy trains embeddings or a head, it is used for those matrices too.
    """

    name = "muon"
    paper = "Jordan et al. 2024, Muon: An Optimizer for Hidden Layers in Neural Networks, kellerjordan.github.io"

    class Config(AdamConfig):
        """Options of Muon's step; `betas` and `eps` are AdamW's."""

        momentum: float = Field(0.95, ge=0, lt=1, description="decay of the mean of gradients")
        nesterov: bool = Field(True, description="use Nesterov momentum")
        iterations: int = Field(5, ge=1, lt=100, description="Newton–Schulz iterations that orthogonalise the update")

    def build(self, param_groups: Groups) -> torch.optim.Optimizer:
        config = self.config
        matrices, others = (_only(param_groups, is_matrix) for is_matrix in (True, False))
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = {"momentum": config.momentum, "nesterov": config.nesterov, "ns_steps": config.iterations}
            parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **muon))
        if others:
            parts.append(torch.optim.AdamW(others, betas=config.betas, eps=config.eps))
        return Combined(parts)


class Combined(torch.optim.Optimizer):
    """Several optimisers with their own groups, combined to one list of groups and one state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of each optimiser."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Assign them in every step, as `load_state_dict` replaces groups and state.
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
            part.step()
        return loss


def _only(param_groups: Groups, matrices: bool) -> Groups:
    """Return the groups with only their matrices, or only their other parameters."""
    groups = [{**group, "params": [p for p in group["params"] if (p.ndim == 2) is matrices]} for group in param_groups]
    return [group for group in groups if group["params"]]
