"""DoRA: a weight's direction is tuned by LoRA, its magnitude by a vector (Liu et al. 2024, arXiv:2402.09353).

W' = m · (W + scale · BA) / ‖W + scale · BA‖, with one norm and one m for each output. The norm is a constant to
the gradient (§4.3). With u = m / ‖…‖, and x̂ = dropout(x) on both terms that train, as PEFT computes it:

    y = W x + bias + (u - 1) · W x̂ + scale · u · B A x̂
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ftengine_builtins.strategies.lora_layers import DenseLora


class DoraLayer(DenseLora):
    """Mixed into a dense LoRA layer: outputs are rescaled by the tuned magnitude."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        p, bias = self.lora_p(), getattr(self, "bias", None)
        apart = self.lora_a0 is not None and p > 0
        a, b = (self.lora_a, self.lora_b) if apart else self.lora_factors()
        u = self.lora_magnitude / self.norm()
        y = self.frozen(x, bias, apart)
        if p > 0:
            x = F.dropout(x, p)
            z = self.frozen(x, None, apart)
        else:
            z = y if bias is None else y - bias.view_as(u)
        y = (y + (u - 1) * z).to(y.dtype)
        return self.add(y, x, a, b * u.reshape(-1, *[1] * (b.dim() - 1)), 0.0)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Return the norm of each output's weights with the update, in the magnitude's shape."""
        norm = torch.linalg.vector_norm(self.updated(self.weight), dim=self.inputs, keepdim=True)
        return norm.view(1, -1, 1, 1) if norm.dim() == 4 else norm.flatten()  # PEFT's shapes

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the base weight by W' in place, and keep the factor for `unfold`."""
        per_output = [1 if i in self.inputs else n for i, n in enumerate(self.weight.shape)]
        self.lora_folded = (self.lora_magnitude / self.norm()).view(per_output)
        self.weight.copy_(self.updated(self.weight) * self.lora_folded)

    @torch.no_grad()
    def unfold(self) -> None:
        self.weight.copy_(self.updated(self.weight / self.lora_folded, -1.0))
        del self.lora_folded
