"""How A and B start.

`kaiming` and `gaussian` draw A and leave B at zero. `pissa` and `olora` start from the principal part of the
base weight, so that training moves what matters most from the first step on.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

ALLOWED = "kaiming, gaussian, pissa, pissa_niter_N (a fast SVD with N iterations, e.g. pissa_niter_4) or olora"
PATTERN = re.compile(r"kaiming|gaussian|olora|pissa(_niter_(?P<iterations>[1-9]\d*))?")


def draw(a: Tensor, init: str) -> None:
    """Draw A (r, in) in place: with standard deviation 1/r for `gaussian`, else as PEFT and the reference do."""
    if init == "gaussian":
        nn.init.normal_(a, std=1 / a.shape[0])
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))


def decomposes(init: str) -> bool:
    """Say whether an initialisation starts from the weight."""
    return init not in ("kaiming", "gaussian")


def decompose(weight: Tensor, rank: int, scale: float, init: str) -> tuple[Tensor, Tensor]:
    """Return the A (r, K) and B (N, r) that a weight (N, K) starts from, in float32 (float64 for a float64 weight)."""
    weight = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    if init == "olora":
        return olora(weight, rank)
    found = PATTERN.fullmatch(init)
    return pissa(weight, rank, scale, int(found["iterations"]) if found and found["iterations"] else None)


def pissa(weight: Tensor, rank: int, scale: float, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """Return A and B whose update, scale · BA, is the best rank-r part of W (Meng et al. 2024, arXiv:2404.02948).

    Args:
        weight: (N, K).
        rank: r.
        scale: what the update is multiplied by.
        iterations: of a randomised SVD (Halko et al. 2011, arXiv:0909.4061); None for the exact one.
    """
    if iterations is None:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u, s, v = torch.svd_lowrank(weight, rank, niter=iterations)
        vt = v.t()
    root = (s / scale).sqrt()
    return root[:, None] * vt, u * root


def olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B from W = QR: the first r rows of R and columns of Q (Büyükakyüz 2024, arXiv:2406.01775).

    B's columns are orthonormal; the scale changes nothing, as in PEFT.
    """
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]
