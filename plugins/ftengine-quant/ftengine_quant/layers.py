"""Frozen linear layers with 4-bit or 8-bit weights, which every forward pass unpacks.

They compute the same in training and in evaluation, and their parameters are plain integer tensors, which torch can
move, copy and count. bitsandbytes 0.50's own layers differ on CPUs: in evaluation they use 8-bit activations and
bfloat16 scales, so the measured model is not the trained one, and 4-bit layers give no gradients after an evaluation if
the CPU has AVX512-BF16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState, int8_vectorwise_quant, quantize_4bit
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 64
"""4-bit weights that share a scale, as in the paper and in transformers."""


class FourBitLinear(nn.Linear):
    """y = x W̃ᵀ + bias, for W̃ (out, in) of blocks of 4-bit codes with a scale each (Dettmers et al. 2023, §3)."""

    weight: nn.Parameter  # (out · in / 2, 1), uint8
    quant_state: QuantState
    compute_dtype: torch.dtype | None

    def forward(self, x: Tensor) -> Tensor:
        y = matmul_4bit(x if self.compute_dtype is None else x.to(self.compute_dtype), self.weight, self.quant_state)
        return _with_bias(y.to(x.dtype), self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourBitLinear:
        super()._apply(fn, recurse)
        self.quant_state.to(self.weight.device)
        return self


class EightBitLinear(nn.Linear):
    """y = (x Qᵀ) · scale + bias, for Q (out, in) int8 and a scale for each output."""

    weight: nn.Parameter  # (out, in), int8
    scale: Tensor  # (out,), float32

    def forward(self, x: Tensor) -> Tensor:
        return _with_bias(_EightBitProduct.apply(x, self.weight, self.scale), self.bias)


class _EightBitProduct(torch.autograd.Function):
    """(x Qᵀ) · scale; the backward pass unpacks Q again, where autograd would keep every layer's unpacked one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        y = F.linear(x, weight.to(x.dtype))
        return y * scale.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (grad * scale.to(grad.dtype)) @ weight.to(grad.dtype), None, None


def four_bit(layer: nn.Linear, quant_type: str, double_quant: bool, compute_dtype: str) -> FourBitLinear:
    """Return a layer with the weights of another in 4 bits, by bitsandbytes.

    Args:
        layer: weight (out, in), perhaps on the meta device; its bias is taken over.
        quant_type: "nf4" or "fp4".
        double_quant: quantise the scales as well.
        compute_dtype: dtype to which weights are unpacked, "auto" for the input's.
    """
    # On the meta device bitsandbytes would make, and keep for good, a table of codes without values.
    double_quant = double_quant and not layer.weight.is_meta
    codes, state = quantize_4bit(
        layer.weight.detach().contiguous(), blocksize=BLOCK, compress_statistics=double_quant, quant_type=quant_type
    )
    new = _like(FourBitLinear, layer, codes)
    new.quant_state = state
    new.compute_dtype = None if compute_dtype == "auto" else getattr(torch, compute_dtype)
    return new


def eight_bit(layer: nn.Linear) -> EightBitLinear:
    """Return a layer with the weights of another in 8 bits, by bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339).

    Args:
        layer: weight (out, in), perhaps on the meta device; its bias is taken over.
    """
    codes, largest, _ = int8_vectorwise_quant(layer.weight.detach().half())
    new = _like(EightBitLinear, layer, codes)
    new.register_buffer("scale", largest / 127)
    return new


def eight_bit_by_torchao(layer: nn.Linear) -> EightBitLinear:
    """Return the same as `eight_bit`, quantised by torchao."""
    from torchao.quantization import Int8Tensor, PerRow

    packed = Int8Tensor.from_hp(layer.weight.detach().float(), PerRow())
    new = _like(EightBitLinear, layer, packed.qdata)
    new.register_buffer("scale", packed.scale.flatten())
    return new


def _like(cls: Any, layer: nn.Linear, codes: Tensor) -> Any:
    new = cls(layer.in_features, layer.out_features, bias=False, device="meta")
    new.weight, new.bias = nn.Parameter(codes, requires_grad=False), layer.bias
    return new.train(layer.training)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)
