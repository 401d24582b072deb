"""Frozen linear layers on bitsandbytes' weights and products, made from those of a model on any device.

Both are bitsandbytes' own classes, so that whatever knows those knows these, with another forward pass. On CPUs that of
bitsandbytes 0.50 computes differently in evaluation (activations in 8 bits, scales in bfloat16), so that what is
measured is not what was trained; its 4-bit layers give no gradients any more once they were evaluated (where the CPU
has AVX512-BF16); and its biases cannot train on batches of sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftengine_quant.library import bitsandbytes as bnb

BLOCK = 64
"""Weights that share a scale, as in the paper and in transformers."""


class FourBitLinear(bnb.nn.Linear4bit):
    """y = x W̃ᵀ + bias, for W̃ (out, in) unpacked from 4-bit codes in every pass (Dettmers et al. 2023, §3)."""

    weight: Any

    def forward(self, x: Tensor) -> Tensor:
        # bitsandbytes keeps the state in both places, because moving to a GPU loses what hangs on the weight.
        state: Any = getattr(self.weight, "quant_state", None) or self.quant_state
        y = bnb.matmul_4bit(x if self.compute_dtype is None else x.to(self.compute_dtype), self.weight, state)
        return _with_bias(y.to(x.dtype), self.bias)


class EightBitLinear(bnb.nn.Linear8bitLt):
    """y = x W̃ᵀ + bias, for rows of W̃ (out, in) held as integers and a scale.

    On CPUs W̃ is unpacked; GPUs multiply integers, with activations quantised too (LLM.int8(), arXiv:2208.07339).
    """

    weight: Any

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.CB is not None:
            self.init_8bit_state()
        self.state.is_training = True
        return _with_bias(bnb.matmul(x, self.weight, state=self.state), self.bias)


def four_bit(layer: nn.Linear, quant_type: str, double_quant: bool, compute_dtype: str) -> FourBitLinear:
    """Return a layer with the weights of another in 4 bits.

    Args:
        layer: weight (out, in), perhaps on the meta device; its bias is taken over.
        quant_type: "nf4" or "fp4".
        double_quant: quantise the scales as well.
        compute_dtype: what weights are unpacked to, "auto" for the input's.
    """
    # On the meta device bitsandbytes would make, and keep for good, a table of codes without values.
    double_quant = double_quant and not layer.weight.is_meta
    packing: dict[str, Any] = {"compress_statistics": double_quant, "quant_type": quant_type}
    dtype = None if compute_dtype == "auto" else getattr(torch, compute_dtype)
    new = FourBitLinear(
        layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, device="meta", **packing
    )
    codes, state = bnb.functional.quantize_4bit(layer.weight.detach().contiguous(), blocksize=BLOCK, **packing)
    new.weight = bnb.nn.Params4bit(codes, quant_state=state, blocksize=BLOCK, bnb_quantized=True, module=new, **packing)
    new.quant_state, new.bias = state, layer.bias
    return new.train(layer.training)


def eight_bit(layer: nn.Linear) -> EightBitLinear:
    """Return a layer with the weights of another, (out, in) and perhaps on the meta device, in 8 bits."""
    new = EightBitLinear(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False, device="meta")
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(layer.weight.detach().half())
    new.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    new.bias = layer.bias
    return new.train(layer.training)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)
