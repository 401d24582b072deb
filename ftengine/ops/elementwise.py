"""Element-wise operations for which ATen reads memory several times, or draws random numbers one by one.

    y = (w + offset) ∘ x / sqrt(mean(x²) + eps)           (Zhang and Sennrich 2019, arXiv:1910.07467)
    y = mask ∘ x / (1 - p)                                (Srivastava et al. 2014, JMLR 15)
    y = gate ∘ σ(gate) ∘ up                               (Shazeer 2020, arXiv:2002.05202)
    y = cos ∘ x + sin ∘ (-x₂, x₁), x = (x₁, x₂)           (Su et al. 2021, arXiv:2104.09864)

Everything is computed in fp32 (fp64 for fp64) and rounded once. For the backward pass a norm saves x and one number per
row, dropout its seed, a gate its two inputs, a rotation its angles. As in schemas.py, a registered compiled kernel
replaces the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftengine.ops.autograd import apply
from ftengine.ops.dropout import LEVELS, dropout_level
from ftengine.ops.eligibility import why_ineligible
from ftengine.ops.philox import keep_mask
from ftengine.ops.schemas import define

SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float offset, float eps) -> (Tensor y, Tensor rstd)",
    "rms_norm_backward": "(Tensor dy, Tensor x, Tensor weight, Tensor rstd, float offset, bool weight_gradient) -> "
    "(Tensor dx, Tensor dw)",
    "dropout": "(Tensor x, float p, Tensor seed) -> Tensor",
    "silu_mul": "(Tensor gate, Tensor up) -> Tensor",
    "silu_mul_backward": "(Tensor dy, Tensor gate, Tensor up) -> (Tensor dgate, Tensor dup)",
    "rotate": "(Tensor x, Tensor cos, Tensor sin, bool transposed) -> Tensor",
}


def rms_norm(x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
    """Return (w + offset) ∘ x / sqrt(mean(x²) + eps).

    Args:
        x: (..., L).
        weight: (L,), of any dtype.
        offset: added to the weight: 1 if the weight is stored as a difference from 1, else 0.
        eps: added to the mean of squares.

    Returns:
        (..., L) in x's dtype.
    """
    return apply(_RMSNorm, x.contiguous(), weight, offset, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
        ctx.refused = why_ineligible(x.device.type, x.dtype, 1, x.layout) is not None
        y, rstd = (_rms_norm if ctx.refused else NORM)(x, weight, offset, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        call, wanted = _rms_norm_backward if ctx.refused else NORM_BACKWARD, ctx.needs_input_grad[1]
        x, weight, rstd = ctx.saved_tensors
        dx, dw = call(dy.contiguous(), x, weight, rstd, ctx.offset, wanted)
        return dx, dw if wanted else None, None, None


def dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Return mask ∘ x / (1 - p); the flattened x takes the first row of philox.py's mask.

    Args:
        x: of any shape and floating dtype.
        p: a multiple of 1/65536 in (0, 1).
        seed: () int64.

    Returns:
        Of x's shape, dtype and strides.
    """
    return _Dropout.apply(x, p, seed)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: Tensor) -> Tensor:
        call = _dropout if why_ineligible(x.device.type, x.dtype, 1, x.layout) is not None else DROPOUT
        ctx.p = p
        ctx.save_for_backward(seed)
        y = call(x.contiguous(), p, seed)
        return y if x.is_contiguous() else torch.empty_like(x).copy_(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dropout(dy, ctx.p, *ctx.saved_tensors), None, None  # linear, so it may be differentiated again


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate ∘ σ(gate) ∘ up, of two tensors of one shape and dtype."""
    return apply(_SiLUMul, gate.contiguous(), up.contiguous())


class _SiLUMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.refused = why_ineligible(gate.device.type, gate.dtype, 1, gate.layout) is not None
        ctx.save_for_backward(gate, up)
        return (_silu_mul if ctx.refused else GATE)(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return (_silu_mul_backward if ctx.refused else GATE_BACKWARD)(dy.contiguous(), *ctx.saved_tensors)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return cos ∘ x + sin ∘ (-x₂, x₁), where x₁ and x₂ are the halves of x's last dimension.

    Args:
        x: (B, heads, L, D), D even.
        cos, sin: (B or 1, L, D) in x's dtype; no gradient flows to them.

    Returns:
        (B, heads, L, D), in memory as (B, L, heads, D).
    """
    return apply(_Rotate, x, cos.contiguous(), sin.contiguous(), False)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> Tensor:
        call = _rotate if why_ineligible(x.device.type, x.dtype, 1, x.layout) is not None else ROTATE
        ctx.save_for_backward(cos, sin)
        ctx.transposed = transposed
        return call(x if x.stride(-1) == 1 else x.contiguous(), cos, sin, transposed).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx: Tensor = _Rotate.apply(dy, *ctx.saved_tensors, not ctx.transposed)  # linear: it may be differentiated again
        return dx, None, None, None


def _dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    n = dropout_level(p)
    kept = keep_mask(seed, n, 0, 1, x.numel()).view(x.shape).bool()
    (wide,) = _wide(x)
    return (torch.where(kept, wide, 0) * (LEVELS / (LEVELS - n))).to(x.dtype)


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


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    wide, other = _wide(gate, up)
    return (wide * wide.sigmoid() * other).to(gate.dtype)


def _silu_mul_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    d, wide, other = _wide(dy, gate, up)
    share = wide.sigmoid()
    return (d * other * share * (1 + wide * (1 - share))).to(gate.dtype), (d * wide * share).to(up.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> Tensor:
    wide, c, s = _wide(x, cos[:, None], sin[:, None])
    other = s * wide if transposed else wide
    first, second = other.chunk(2, -1)
    turned = torch.cat([second, -first] if transposed else [-second, first], -1)
    return (c * wide + (turned if transposed else s * turned)).transpose(1, 2).contiguous().to(x.dtype)


def _shapes(x, weight, offset, eps):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), x.new_empty(x.shape[:-1].numel(), dtype=wide)


def _shapes_backward(dy, x, weight, rstd, offset, weight_gradient):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), weight.new_empty(weight.shape if weight_gradient else 0)


def _shapes_rotated(x, cos, sin, transposed):  # type: ignore[no-untyped-def]
    batch, heads, length, depth = x.shape
    return x.new_empty(batch, length, heads, depth)


NORM = define("rms_norm", SCHEMAS["rms_norm"], _rms_norm, _shapes)
NORM_BACKWARD = define("rms_norm_backward", SCHEMAS["rms_norm_backward"], _rms_norm_backward, _shapes_backward)
DROPOUT = define("dropout", SCHEMAS["dropout"], _dropout, lambda x, p, seed: torch.empty_like(x))
GATE = define("silu_mul", SCHEMAS["silu_mul"], _silu_mul, lambda gate, up: torch.empty_like(gate))
GATE_BACKWARD = define(
    "silu_mul_backward",
    SCHEMAS["silu_mul_backward"],
    _silu_mul_backward,
    lambda dy, gate, up: (torch.empty_like(gate), torch.empty_like(up)),
)
ROTATE = define("rotate", SCHEMAS["rotate"], _rotate, _shapes_rotated)
