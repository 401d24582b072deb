"""When two models, outputs, tensors or figures are the same: the distances, and the table of what each may be at most.

`make docs` writes the table of the texts below the constants to build/docs/tolerances.md. Their first paragraph says
what is compared and where the value comes from, the second one the largest fault that passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["KERNELS", "OUTPUTS", "REORDERED", "differing", "distance", "rounding", "row_distances", "same_figure"]

_EPS = torch.finfo(torch.float32).eps

ROUNDINGS = 4
"""Units of a dtype's rounding that a few operations at other places make: what a model does behind its output head, of
each of ± 10⁻³ to 10⁴ and zeros in place of the head's output; tensors that are saved and opened again, of their largest
element; RMS norms and fast paths in half precision, beside what else they are allowed; outputs that would be compared
in float32, where that cannot be had (0.03 in bfloat16; 0.004 on GPUs, for TF32).

Behind the head a factor of 1 + 3·10⁻⁷, and a cap above 10,000; 3·10⁻⁷ of a tensor's largest element; in half precision
more than 1 % of one small matrix of a tiny BERT.
"""

KERNELS = 16 * _EPS
"""A kernel's values and gradients against float64, row by row, of a row's largest number: of RMS norms, for rows of
five scales, and of kernels that use a GPU's own exponential, for 64 rows and beside twice PyTorch's own error.

A factor of 1 + 1.8·10⁻⁶ in norms, of 1 + 10⁻⁶ in others.
"""

OUTPUTS = 64 * _EPS
"""‖difference‖ / ‖outputs‖ of models that only round at other places, a few units in each layer: tuned and opened
again, on 4 examples (in the run's dtype where all tensors are equal, in float32 where files open under other options
or with tensors of other shapes); unmerged, merged, and merged and opened again, on 32 random tokens in float32.

10⁻⁴ of one layer of a tiny BERT; in merging, rows of an embedding whose tokens are not among the 32.
"""

STATES = 3e-5
"""Root mean square by which a token's state differs, of its own, for the worst token, in float32: of packed examples
and each alone, 96 tokens, and of rows that share a prefix and each alone, 28 tokens. 20 models of transformers that
keep examples apart, and SmolLM2 with its own weights, are at most at 2·10⁻⁶, and those that do not at 7·10⁻⁴ at least.

10⁻⁵ of another example's state; a factor of 1 + 10⁻⁵ on all queries, keys and values of a tiny Llama; what differs
beyond 64 tokens of packed examples, or 10 of rows that share a prefix.
"""

GRADIENTS = 1e-4
"""A loss, and each parameter's gradient by its norm: of fast paths and the model's own way, in float32 on two of the
run's examples.

A factor of 1 + 10⁻⁵ in one layer of any of the shipped models.
"""

FLOOR = 1e-2
"""Of the largest gradient's norm: the least that a gradient's difference is divided by. One that is zero but for
rounding (of the keys' bias in attention, which softmax ignores) has no size of its own."""

HALF_RATIO = 3.0
"""In half precision a fast path may be so many times as far from float32 as the model's own way, beside `ROUNDINGS`."""

REORDERED = 1e-5
"""Figures, by their size, that are sums in another order: scores of an evaluator in another order or with weights;
losses and predictions in other batches or in parts; outputs before and after `prepare` where that moves a part of a
weight into what it adds; and functions that a kernel replaces.

3·10⁻⁵ of a loss times the share of padding; in scores, a factor of 1 + 10⁻⁵.
"""

SUMMED = 1e-3
"""A loss, and the sum of what its criterion computed: beyond it is another loss, and is not told by source."""

DROPPED = 0.05
"""Means over random masks of dropout, by their size, beside 7 standard errors."""

STORED = 0.05
"""Root mean square of what storing in a lower dtype changes in the numbers that a model learnt, in their standard
deviations: 0.25 % of their variance."""

LEAST_EFFECT = 1e-3
"""No tolerance but the least, of their size: by which five steps of training move outputs, and half a loss the loss."""


def rounding(dtype: torch.dtype) -> float:
    """Return `ROUNDINGS` of a dtype, as a share of a number's size."""
    return ROUNDINGS * torch.finfo(dtype).eps


def distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray, mean: float = 0.0, size: float | None = None) -> float:
    """Return ‖a - b‖ / ‖b - mean‖ in float64: 0 where they are equal, infinite where their shapes differ.

    Args:
        mean: mean of target numbers that a model learnt, which is subtracted from outputs. Float32 limits the precision
            of outputs near it, so ‖b - mean‖ is at least a sixteenth of the mean.
        size: the divisor of ‖a - b‖ instead of ‖b - mean‖.
    """
    a, b = _wide(a), _wide(b)
    if a.shape != b.shape or torch.equal(a, b):
        return 0.0 if a.shape == b.shape else math.inf
    least = abs(mean) * math.sqrt(b.numel()) / 16
    return float((a - b).norm() / ((b - mean).norm().clamp(min=least) if size is None else size))


def row_distances(a: Tensor, b: Tensor, order: float = 2.0) -> Tensor:
    """Return ‖aᵢ - bᵢ‖ / ‖bᵢ‖ of each row i of two tensors (…, n), in float64 on the CPU: 0 where rows are equal.

    Args:
        order: of the norm: 2, or `math.inf` for a row's largest number.
    """
    a, b = _wide(a), _wide(b)
    apart, size = (torch.linalg.vector_norm(x, order, dim=-1) for x in (a - b, b))
    return torch.where((a == b).all(-1), 0.0, apart / size)


def block_distances(a: Mapping[str, Tensor], b: Mapping[str, Tensor], loss: str) -> dict[str, float]:
    """Return ‖aᵢ - bᵢ‖ / max(‖bᵢ‖, `FLOOR` · maxⱼ ‖bⱼ‖) of the loss and each gradient i; j are gradients alone."""
    sizes = {name: float(_wide(x).norm()) for name, x in b.items()}
    least = FLOOR * max((size for name, size in sizes.items() if name != loss), default=0.0)
    return {name: distance(a[name], b[name], size=max(size, least) or 1.0) for name, size in sizes.items()}


def log_probability_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean of |a - b| over the tokens of an answer, without those that are nan; nan where all are."""
    apart = np.abs(a - b)
    known = apart[~np.isnan(apart)]
    return float(known.mean()) if len(known) else math.nan


def same_figure(a: float, b: float, least: float = 1e-8) -> bool:
    """Return whether |a - b| is at most `REORDERED` of the larger one, or `least`; two nan are the same."""
    return math.isclose(a, b, rel_tol=REORDERED, abs_tol=least) or (a != a and b != b)


def differing_figures(a: Mapping[str, float], b: Mapping[str, float]) -> str:
    """Return the names of figures that differ between `a` and `b`, with both values; "" if none does."""
    return ", ".join(f"{name} {x:.6g} and {b[name]:.6g}" for name, x in a.items() if not same_figure(x, b[name]))


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the names in `a` that `b` lacks or has with another value; tensors are compared to the bit."""

    def same(x: Any, y: Any) -> bool:
        return bool(torch.equal(x, y) if isinstance(x, Tensor) else x == y)

    return [name for name, x in a.items() if name not in b or not same(x, b[name])]


def _wide(x: Tensor | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(x)).double() if isinstance(x, np.ndarray) else x.detach().cpu().double()
