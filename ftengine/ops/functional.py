"""The public low-rank layers: they check shapes, cast to autocast's dtype, and draw seeds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ftengine.ops.autograd import LowRankAdd, LowRankGroup, LowRankLinear, apply, operators
from ftengine.ops.dropout import draw_seed, quantise_dropout
from ftengine.ops.eligibility import MAX_RANK
from ftengine.ops.precision import autocast_enabled, compute_dtype, without_autocast


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    diagonal: Tensor | None = None,
) -> Tensor:
    """Apply a frozen linear map and its low-rank update.

    y = x Wᵀ + bias + scale · (dropout(x) Aᵀ) Bᵀ             (Hu et al. 2021, arXiv:2106.09685, §4.1)

    y = x Wᵀ + bias + scale · ((dropout(x) Aᵀ) ∘ d) Bᵀ      with a diagonal d: AdaLoRA's singular values (Zhang et al.
    2023, arXiv:2303.10512, §3.1), VeRA's scaling (Kopiczko et al. 2024, arXiv:2310.11454, §3.2)

    Args:
        x: (..., K) input; fp32, bf16 or fp16. Under autocast it is cast, as torch.nn.functional.linear casts it.
        weight: (N, K), frozen; receives no gradient. In x's dtype, or any under autocast.
        bias: (N,) or None, frozen.
        a: (r, K); b: (N, r); trained. May be fp32 masters of any compute dtype; gradients come in their own.
        scale: alpha / r, dimensionless.
        p: dropout probability on the low-rank path only; rounded to a multiple of 1/65536.
        seed: () int64 tensor; drawn from torch's generator when None and p > 0.
        diagonal: (r,) or None; trained, also where a and b are frozen. It is multiplied into b in at least fp32, before
            that is rounded to the compute dtype, so every kernel serves it; merge with lowrank_merge_ of b · diagonal.

    Returns:
        (..., N) in x's dtype (autocast's, under autocast); products accumulate in fp32.

    Raises:
        ValueError: shapes disagree; the message gives both. Or weight or bias requires a gradient, which it would
            not get; or x and weight differ in dtype outside autocast.
    """
    _check_layer(x, weight, bias, a, b)
    x = _computed(x)
    p, seed = _dropout(x, p, seed)
    if diagonal is not None:
        b = _times(b, diagonal)
    return apply(LowRankLinear, x, weight, bias, a, b, scale, p, seed)


def lowrank_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Apply several frozen linear maps with their low-rank updates to one x: a transformer's q, k and v.

    Each as lowrank_linear computes it, but x is read once, all share one dropout mask, and their gradients with
    respect to x are added up in one buffer.

    Args:
        x: (..., K), as in lowrank_linear.
        weights: (N, K) each; N may differ.
        biases: (N,) each, or None.
        a: (r, K) each; b: (N, r) each; r may differ.
        scales: alpha / r of each.
        p: dropout probability, of all.
        seed: of the mask, as in lowrank_linear.

    Returns:
        y (..., N) of each map.

    Raises:
        ValueError: as in lowrank_linear, or the lists differ in length.
    """
    if not len(weights) == len(biases) == len(a) == len(b) == len(scales) > 0:
        raise ValueError(
            f"there are {len(weights)} weights, {len(biases)} biases, {len(a)} a, {len(b)} b and {len(scales)} scales: "
            "give one of each for every layer"
        )
    for weight, bias, down, up in zip(weights, biases, a, b, strict=True):
        _check_layer(x, weight, bias, down, up)
    x = _computed(x)
    p, seed = _dropout(x, p, seed)
    ranks = [len(factor) for factor in a]
    if sum(ranks) > MAX_RANK >= max(ranks) or min(ranks) == 0:
        # Kernels take them one by one, but for one of rank 0; of one seed they have one mask.
        seed = draw_seed(x.device) if p and seed is None else seed
        layers = zip(weights, biases, a, b, scales, strict=True)
        return tuple(apply(LowRankLinear, x, *layer, p, seed) for layer in layers)
    return apply(LowRankGroup, x, list(scales), p, seed, *weights, *biases, *a, *b)


def lowrank_add(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    diagonal: Tensor | None = None,
) -> Tensor:
    """Add a low-rank update to the output of any frozen layer, such as a 4-bit or otherwise packed one.

    out = y + scale · (dropout(x) Aᵀ) Bᵀ, with y = layer(x); or with ∘ d before Bᵀ, as in lowrank_linear

    y is not overwritten, as its layer may have saved it for its backward pass, and hooks may hold it. So memory holds a
    second y, which lowrank_linear avoids for dense layers.

    Args:
        y: (..., N) output of the frozen layer.
        x: (..., K) its input; cast, as in lowrank_linear.
        a: (r, K); b: (N, r); scale, p, seed and diagonal: as in lowrank_linear.

    Returns:
        (..., N), fresh, in y's dtype. Gradients flow to y (unchanged), x (the low-rank part), a and b.

    Raises:
        ValueError: shapes disagree; the message gives both.
    """
    _check_update(x, a, b)
    _check(y.shape[-1:] == b.shape[:1], "y (..., N)", y, "b (N, r)", b)
    _check(y.shape[:-1] == x.shape[:-1], "y (..., N)", y, "x (..., K)", x)
    p, seed = _dropout(x, p, seed)
    if p and seed is None:
        seed = draw_seed(x.device)
    x = _computed(x)
    if diagonal is not None:
        b = _times(b, diagonal)
    return apply(LowRankAdd, y, x, a, b, scale, p, seed)


@torch.no_grad()
def lowrank_merge_(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Merge a low-rank update into the weight it belongs to, in place.

    W += scale · B A, accumulated in fp32 (fp64 for fp64) and rounded once. With -scale it is taken out again, up to
    that rounding.

    Args:
        weight: (N, K).
        a: (r, K); b: (N, r).
        scale: alpha / r, dimensionless.

    Returns:
        weight.

    Raises:
        ValueError: shapes disagree; the message gives both.
    """
    _check_update(weight, a, b)
    _check(weight.dim() == 2 and weight.shape[0] == b.shape[0], "weight (N, K)", weight, "b (N, r)", b)
    a, b = (factor.clone() if _overlap(factor, weight) else factor for factor in (a, b))
    dense = weight.contiguous()  # weight itself, unless it is a transposed view such as GPT-2's
    with without_autocast(weight.device.type):
        operators(a.shape[0], weight.shape, weight).lowrank_merge_(dense, a, b, scale)
    if dense is not weight:
        return weight.copy_(dense)
    if not weight.is_inference():  # autograd sees what a compiled kernel wrote, as it sees any other change in place
        torch.autograd.graph.increment_version(weight)
    return weight


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors may share memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _times(b: Tensor, diagonal: Tensor) -> Tensor:
    """Return b with its columns times a diagonal.  b (N, r), diagonal (r,)."""
    _check(diagonal.shape == b.shape[1:], "diagonal (r,)", diagonal, "b (N, r)", b)
    wide = torch.promote_types(b.dtype, torch.float32)
    return b.to(wide) * diagonal.to(wide)


def _computed(x: Tensor) -> Tensor:
    """Return x in the dtype that the layer computes in."""
    dtype = compute_dtype(x.device.type, x.dtype)
    return x if x.dtype == dtype else x.to(dtype)


def _check_layer(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> None:
    if not _layer_agrees(x, weight, bias, a, b):
        _explain_layer(x, weight, bias, a, b)
    if (weight.requires_grad or (bias is not None and bias.requires_grad)) and torch.is_grad_enabled():
        name = "weight" if weight.requires_grad else "bias"
        raise ValueError(f"{name} requires a gradient, but here it is frozen: set requires_grad to False")
    if weight.dtype != x.dtype and not autocast_enabled(x.device.type):
        raise ValueError(f"x is {x.dtype} and weight is {weight.dtype}: cast one, or compute under torch.autocast")


def _layer_agrees(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> bool:
    """Return whether shapes fit: one comparison for every call, since it counts beside a small layer's products."""
    if x.dim() < 1 or a.dim() != 2 or b.dim() != 2:
        return False
    k, r, n = x.shape[-1], a.shape[0], b.shape[0]
    layer = (weight.shape, a.shape, b.shape) == ((n, k), (r, k), (n, r))
    return layer and (bias is None or bias.shape == (n,))


def _explain_layer(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> None:
    _check_update(x, a, b)
    _check(weight.dim() == 2 and weight.shape[1] == x.shape[-1], "weight (N, K)", weight, "x (..., K)", x)
    _check(weight.shape[0] == b.shape[0], "weight (N, K)", weight, "b (N, r)", b)
    if bias is not None:
        _check(bias.shape == weight.shape[:1], "bias (N,)", bias, "weight (N, K)", weight)


def _check_update(x: Tensor, a: Tensor, b: Tensor) -> None:
    _check(x.dim() >= 1 and a.dim() == 2 and a.shape[1] == x.shape[-1], "a (r, K)", a, "x (..., K)", x)
    _check(b.dim() == 2 and b.shape[1] == a.shape[0], "b (N, r)", b, "a (r, K)", a)


def _check(agree: bool, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if not agree:
        raise ValueError(f"{name} is {tuple(tensor.shape)} but {other_name} is {tuple(other.shape)}")


def _dropout(x: Tensor, p: float, seed: Tensor | None) -> tuple[float, Tensor | None]:
    """Return the quantised p with the seed as it is given; no seed where there is no dropout."""
    p = quantise_dropout(p)
    if p == 0.0 or seed is None:
        return p, None
    if seed.shape != () or seed.dtype != torch.int64:
        raise ValueError(f"seed is {seed.dtype} of shape {tuple(seed.shape)}; it must be a () torch.int64 tensor")
    return p, seed.to(x.device)
