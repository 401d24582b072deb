"""Liger's kernels, and the choice of the kernel for a module."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from liger_kernel.ops.geglu import LigerGELUMulFunction
from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from liger_kernel.ops.swiglu import LigerSiLUMulFunction
from torch import Tensor, nn
from torch.nn import functional as F

from ftengine.equivalence import REORDERED, distance

Binary = Callable[[Tensor, Tensor], Tensor]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Binary]] = {
    "SwiGLU": (F.silu, LigerSiLUMulFunction.apply),
    "GeGLU": (lambda x: F.gelu(x, approximate="tanh"), LigerGELUMulFunction.apply),
}
"""Gates by name: the activation, and the kernel of activation(a) * b."""


def serves(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device: on a GPU, or anywhere with Triton's interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def norm_kernel(offset: float, eps: float, rounding: str) -> Binary:
    """Return the kernel of (w + offset) ∘ x / sqrt(mean(x²) + eps) for x (..., L) and w (L,).

    `rounding` is Liger's casting mode: "llama" rounds before it multiplies by the weight, "gemma" after.
    """

    def kernel(x: Tensor, weight: Tensor) -> Tensor:
        # Not in place, as others may have a share in dy; and by rows, whatever their number, as it was compared.
        return LigerRMSNormFunction.apply(x, weight, eps, offset, rounding, False, True)

    return kernel


def once(kernel: Binary) -> Binary:
    """Return a kernel that raises RuntimeError if its backward pass runs twice or is differentiated.

    Gradients of gates overwrite the operands, and no kernel has a second derivative.
    """

    def guarded(a: Tensor, b: Tensor) -> Tensor:
        y = kernel(a, b)
        if y.grad_fn is not None:
            y.grad_fn.register_prehook(_Once())
        return y

    return guarded


class _Once:
    spent = False

    def __call__(self, gradients: Any) -> None:
        if self.spent or torch.is_grad_enabled():
            raise RuntimeError(
                "a gradient is computed twice, or differentiated, and Liger's kernels can do neither: set "
                "train.fast_paths to off, or to names without liger"
            )
        self.spent = True


def gate_kernel(activation: nn.Module) -> tuple[str, Binary] | None:
    """Return name and kernel of the gate with an activation; None if there is none."""
    x = torch.linspace(-12, 12, 1001, device="cpu")
    try:
        y = activation(x)
    except Exception:  # it takes something else, and may say so in any way
        return None
    for name, (function, kernel) in ACTIVATIONS.items():
        if isinstance(y, Tensor) and y.shape == x.shape and distance(y, function(x)) <= REORDERED:
            return name, kernel
    return None
