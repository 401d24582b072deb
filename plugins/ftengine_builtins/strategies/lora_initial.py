"""How A and B start.

`kaiming` and `gaussian` draw A and leave B at zero. `pissa` and `olora` start from the principal part of the
base weight, so that training moves what matters most from the first step on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

ALLOWED = "kaiming, gaussian, pissa, pissa_niter_N (a fast SVD with N iterations, e.g. pissa_niter_4) or olora"
PATTERN = re.compile(r"kaiming|gaussian|olora|pissa(_niter_(?P<iterations>[1-9]\d*))?")

Decomposition = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def kaiming(a: Tensor) -> None:
    """Initialise A as PEFT and the reference implementation do."""
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))


def gaussian(a: Tensor) -> None:
    """Initialise A from a normal distribution with standard deviation 1/r."""
    nn.init.normal_(a, std=1 / a.shape[0])


def decomposition(name: str) -> Decomposition | None:
    """Return what decomposes a weight for an initialisation, (W, r, scale) -> (A, B); None for those that draw."""
    if name == "olora":
        return olora
    if not name.startswith("pissa"):
        return None
    found = PATTERN.fullmatch(name)
    iterations = int(found["iterations"]) if found and found["iterations"] else None
    return lambda weight, rank, scale: pissa(weight, rank, scale, iterations)


def pissa(weight: Tensor, rank: int, scale: float, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """Return A and B whose update, scale · BA, is the best rank-r part of W (Meng et al. 2024, arXiv:2404.02948).

    Args:
        weight: (N, K).
        rank: r.
        scale: what the update is multiplied by.
        iterations: of a randomised SVD (Halko et al. 2011, arXiv:0909.4061); None for the exact one.

    Returns:
        A (r, K) and B (N, r), float32 (float64 for a float64 weight).
    """
    weight = _wide(weight)
    if iterations is None:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u, s, v = torch.svd_lowrank(weight, rank, niter=iterations)
        vt = v.t()
    root = (s / scale).sqrt()
    return root[:, None] * vt, u * root


def olora(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A and B from W = QR: the first r rows of R and columns of Q (Büyükakyüz 2024, arXiv:2406.01775).

    B's columns are orthonormal. Arguments and results are those of `pissa`; `scale` changes nothing, as in PEFT.
    """
    q, r = torch.linalg.qr(_wide(weight))
    return r[:rank], q[:, :rank]


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
