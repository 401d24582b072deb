"""Norms and gates in one pass forward and one backward, which ATen computes in some ten passes over memory.

    rms_norm   y = (w + offset) ∘ x / sqrt(mean(x²) + eps)           (Zhang and Sennrich 2019, arXiv:1910.07467)
    gated      y = g σ(g · (linear + cubic · g²)) ∘ u                (Shazeer 2020, arXiv:2002.05202)

Of such a gate, SiLU is (1, 0) and GELU's tanh form 2·sqrt(2/π) · (1, 0.044715). Everything is computed in fp32 (fp64 for
fp64) and rounded once. For the backward pass only the inputs are kept, and a number a row.

As in schemas.py, the reference is what a compiled kernel's registration takes the place of.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftengine.ops.schemas import define, library

SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float offset, float eps) -> (Tensor y, Tensor rstd)",
    "rms_norm_backward": "(Tensor dy, Tensor x, Tensor weight, Tensor rstd, float offset, bool weight_gradient) -> "
    "(Tensor dx, Tensor dw)",
    "gated": "(Tensor gate, Tensor up, float linear, float cubic) -> Tensor",
    "gated_backward": "(Tensor dy, Tensor gate, Tensor up, float linear, float cubic) -> (Tensor dgate, Tensor dup)",
}

TANH = 2 * math.sqrt(2 / math.pi)
ACTIVATIONS = {"silu": (1.0, 0.0), "gelu_tanh": (TANH, TANH * 0.044715)}
"""What `gated` takes as linear and cubic."""


def rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
    """Return (w + offset) ∘ x / sqrt(mean(x²) + eps).

    Args:
        x: (..., L).
        weight: (L,), of any dtype.
        offset: added to the weight: 0, or 1 where it is stored as a difference from 1.
        eps: added to the mean of squares.

    Returns:
        (..., L) in x's dtype.
    """
    return _RMSNorm.apply(x.contiguous(), weight, offset, eps)


def gated(gate: Tensor, up: Tensor, linear: float, cubic: float) -> Tensor:
    """Return g σ(g · (linear + cubic · g²)) ∘ u.

    Args:
        gate, up: of one shape and dtype.
        linear, cubic: as in `ACTIVATIONS`.
    """
    return _Gated.apply(gate.contiguous(), up.contiguous(), linear, cubic)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
        y, rstd = NORM(x, weight, offset, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = NORM_BACKWARD(dy.contiguous(), *ctx.saved_tensors, ctx.offset, ctx.needs_input_grad[1])
        return dx, dw if ctx.needs_input_grad[1] else None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, linear: float, cubic: float) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.form = linear, cubic
        return GATED(gate, up, linear, cubic)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *GATED_BACKWARD(dy.contiguous(), *ctx.saved_tensors, *ctx.form), None, None


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float) -> tuple[Tensor, Tensor]:
    (wide,) = _wide(x)
    rstd = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * rstd * (weight.to(wide.dtype) + offset)).to(x.dtype), rstd.flatten()


def _rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    d, wide = _wide(dy, x)
    rstd = rstd.view(*x.shape[:-1], 1)
    slope = d * (weight.to(wide.dtype) + offset)
    dx = rstd * (slope - wide * rstd.square() * (slope * wide).mean(-1, keepdim=True))
    dw = (d * wide * rstd).flatten(0, -2).sum(0) if weight_gradient else weight.new_empty(0)
    return dx.to(x.dtype), dw.to(weight.dtype)


def _gated(gate: Tensor, up: Tensor, linear: float, cubic: float) -> Tensor:
    g, u = _wide(gate, up)
    return (g * (g * (linear + cubic * g.square())).sigmoid() * u).to(gate.dtype)


def _gated_backward(dy: Tensor, gate: Tensor, up: Tensor, linear: float, cubic: float) -> tuple[Tensor, Tensor]:
    d, g, u = _wide(dy, gate, up)
    sigma = (g * (linear + cubic * g.square())).sigmoid()
    slope = sigma + g * sigma * (1 - sigma) * (linear + 3 * cubic * g.square())
    return (d * u * slope).to(gate.dtype), (d * g * sigma).to(up.dtype)


NORM, NORM_BACKWARD, GATED, GATED_BACKWARD = (
    define(name, schema, meaning)
    for (name, schema), meaning in zip(
        SCHEMAS.items(), (_rms_norm, _rms_norm_backward, _gated, _gated_backward), strict=True
    )
)


@torch.library.register_fake("ftengine::rms_norm", lib=library)
def _(x: Tensor, weight: Tensor, offset: float, eps: float) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), x.new_empty(x.shape[:-1].numel(), dtype=wide)


@torch.library.register_fake("ftengine::rms_norm_backward", lib=library)
def _(  # type: ignore[no-untyped-def]
    dy, x, weight, rstd, offset, weight_gradient
):
    return torch.empty_like(x), weight.new_empty(weight.shape if weight_gradient else 0)


@torch.library.register_fake("ftengine::gated", lib=library)
def _(gate: Tensor, up: Tensor, linear: float, cubic: float) -> Tensor:
    return torch.empty_like(gate)


@torch.library.register_fake("ftengine::gated_backward", lib=library)
def _(dy: Tensor, gate: Tensor, up: Tensor, linear: float, cubic: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)
