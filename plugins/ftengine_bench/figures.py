"""Operations and memory traffic of a step, and the lower bounds of its time."""

from __future__ import annotations

from collections.abc import Mapping

from ftengine_bench.layers import Shape
from ftengine_bench.report import Case

PHASES = {"forward": slice(0, 1), "backward": slice(1, 2), "both": slice(0, 2)}
"""Which of a step's parts, forward and backward, belong to a phase."""

PRODUCTS = {"forward": 1, "backward": 1, "both": 2}
"""Products with W: y = x Wᵀ, dx = dy W."""

LOW_RANK_PRODUCTS = {"forward": 1, "backward": 2, "both": 3}
"""Pairs of a product with A and one with B: S and S Bᵀ; dS and dS A, dA and dB."""


def operations(shape: Shape | Case, rank: int, phase: str) -> int:
    """Return the floating-point operations of a step; rank 0 is the frozen layer alone."""
    m, k, n = shape.m, shape.k, shape.n
    return 2 * m * n * k * PRODUCTS[phase] + 2 * m * rank * (k + n) * LOW_RANK_PRODUCTS[phase]


def least_bytes(shape: Shape, rank: int, phase: str, size: int, factor_size: int = 4) -> int:
    """Return the least memory traffic of a step in bytes: each operand is read once and each result written once.

    Args:
        shape: shape of the layer.
        rank: r, or 0 for the frozen layer alone.
        phase: "forward", "backward" or "both".
        size: bytes per element of x, W, y and S.
        factor_size: bytes per element of A, B and their gradients.
    """
    m, k, n = shape.m, shape.k, shape.n
    factors = factor_size * rank * (k + n)
    forward = size * (m * k + n * k + m * n + m * rank) + factors
    backward = size * (m * n + n * k + m * k + m * rank) + 2 * factors + (size * m * k if rank else 0)  # x, for dA
    return {"forward": forward, "backward": backward, "both": forward + backward}[phase]


def least_overhead(shape: Shape | Case, rank: int, phase: str) -> float:
    """Return T_floor / T_frozen: 1 + 1.5 r (K + N) / (N K) for forward and backward together.

    The bound assumes that the low-rank part computes at the frozen layer's rate, without memory traffic, launches and
    random numbers.
    """
    return operations(shape, rank, phase) / operations(shape, 0, phase)


def recovered(provider: str, overhead: Mapping[str, float], least: float) -> float | None:
    """Return the share of the avoidable overhead that is recovered: (T_eager - T_ours) / (T_eager - T_floor).

    Args:
        provider: the provider whose share is computed.
        overhead: by provider, time divided by the frozen layer's time.
        least: the lower bound divided by the frozen layer's time.

    Returns:
        1 at the lower bound, 0 at the eager layer's time. None for the frozen and the eager layer, and if the eager
        layer is not measured or not slower than the bound.
    """
    if provider in ("frozen", "eager") or overhead.get("eager", 0.0) <= least:
        return None
    return (overhead["eager"] - overhead[provider]) / (overhead["eager"] - least)


def roofline(operation_count: int, byte_count: int, operations_a_second: float, bytes_a_second: float) -> float:
    """Return the least seconds of a step on a device with these peaks (roofline, Williams et al. 2009)."""
    return max(operation_count / operations_a_second, byte_count / bytes_a_second)
