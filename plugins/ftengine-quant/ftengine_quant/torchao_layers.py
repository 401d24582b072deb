"""A linear layer with 8-bit weights that torchao made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization import Int8Tensor, PerRow


class WeightOnly(torch.autograd.Function):
    """y = (x Qᵀ) · s, for x (…, in), Q (out, in) int8 and s (out,).

    The backward pass unpacks Q again. Autograd would keep what the forward pass unpacked, for every layer at once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        y = F.linear(x, weight.to(x.dtype))
        return y * scale.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (grad * scale.to(grad.dtype)) @ weight.to(grad.dtype), None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight is 8-bit integers with a float32 scale for each output."""

    weight: nn.Parameter  # (out, in), int8
    scale: Tensor  # (out,)

    def forward(self, x: Tensor) -> Tensor:
        y = WeightOnly.apply(x, self.weight, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def int8_layer(layer: nn.Linear) -> Int8Linear:
    """Return a layer that computes what `layer` does from weights in 8 bits."""
    new = Int8Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    packed = Int8Tensor.from_hp(layer.weight.detach().float(), PerRow())
    new.weight = nn.Parameter(packed.qdata, requires_grad=False)
    new.register_buffer("scale", packed.scale.flatten())
    new.bias = layer.bias
    return new.train(layer.training)
