"""The kernels, and whether they compute what a module does."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from liger_kernel.ops.geglu import LigerGELUMulFunction
from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from liger_kernel.ops.swiglu import LigerSiLUMulFunction
from torch import Tensor, nn
from torch.nn import functional as F

from ftengine.equivalence import KERNELS, REORDERED, distance, row_distances

Binary = Callable[[Tensor, Tensor], Tensor]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Binary]] = {
    "SwiGLU": (F.silu, LigerSiLUMulFunction.apply),
    "GeGLU": (lambda x: F.gelu(x, approximate="tanh"), LigerGELUMulFunction.apply),
}
"""Gates by name: the activation, and the kernel of activation(a) * b."""

ROWS, SCALE = 64, 3.0
"""How many rows are compared, and the size of their numbers: where an activation bends."""


def serves(device: torch.device) -> bool:
    """Say whether Triton's kernels run on a device: a GPU, or any where they are interpreted."""
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
    """Return a kernel whose gradients are computed once and are not differentiated; anything else is a RuntimeError.

    Those of gates lie where the operands were, and none has a second derivative.
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
    """Return name and kernel of an activation's gate, None where there is none."""
    x = torch.linspace(-12, 12, 1001, device="cpu")
    try:
        y = activation(x)
    except Exception:  # it takes something else, and may say so in any way
        return None
    for name, (function, kernel) in ACTIVATIONS.items():
        if isinstance(y, Tensor) and y.shape == x.shape and distance(y, function(x)) <= REORDERED:
            return name, kernel
    return None


def agree(kernel: Binary, plain: Binary, *like: Tensor) -> bool:
    """Say whether a kernel's values and gradients are those of PyTorch's own steps, up to rounding, in float32 too.

    Both are compared with the same steps in float64, on random rows of the operands' sizes and dtype (vectors are taken
    as they are), so that the answer does not depend on the batch. The kernel's error may be twice the other's and,
    beside that, half of a unit in the last place of the largest number of a row, and 16 such units of float32, in which
    the kernels compute by the GPU's own exponential.
    """
    if like[0].dtype is not torch.float32 and not agree(kernel, plain, *(x.detach().float() for x in like)):
        return False  # half precision would round a fault away
    generator = torch.Generator().manual_seed(0)

    def rows(x: Tensor) -> Tensor:
        if x.dim() == 1:
            return x.detach()
        return (torch.randn(ROWS, x.shape[-1], generator=generator) * SCALE).to(x.device, x.dtype)

    operands = [rows(x) for x in like]
    with undisturbed():
        wide = [x.double().requires_grad_() for x in operands]
        exact = plain(*wide)
        dy = torch.randn(exact.shape, generator=generator).to(exact.device, operands[0].dtype)
        truth = [exact, *torch.autograd.grad(exact, wide, dy.double())]
        results = []
        for function in (kernel, plain):
            own = [x.clone().requires_grad_() for x in operands]
            y = function(*own)
            if y.dtype != operands[0].dtype or y.shape != exact.shape:
                return False
            results.append([y, *torch.autograd.grad(y, own, dy, materialize_grads=True)])
    with torch.no_grad():
        return all(map(_as_close, *results, truth))


def _as_close(own: Tensor, other: Tensor, truth: Tensor) -> bool:
    apart, least = (row_distances(x, truth, math.inf) for x in (own, other))
    return bool((apart <= 2 * least + torch.finfo(own.dtype).eps / 2 + KERNELS).all())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute gradients of one's own within a pass: without autocast, and unseen by gradient checkpointing."""
    autocast = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
    with torch.enable_grad(), autocast[0], autocast[1], torch.autograd.graph.saved_tensors_hooks(_same, _same):
        yield


def _same(x: Tensor) -> Tensor:
    return x.detach()  # as it is, it would hold the graph that holds it
