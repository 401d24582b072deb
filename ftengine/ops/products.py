"""Products of float32 matrices by oneDNN, where torch's own leave half of the processor unused.

Torch multiplies float32 by MKL, which takes its AVX-512 code on Intel's processors alone; oneDNN, which every torch for
x86 has inside and uses for bfloat16, takes it wherever it is. Layers of ftengine do so by themselves.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ftengine.ops.library import onednn_from


@contextmanager
def products_by_onednn() -> Iterator[Counter[str]]:
    """Have aten::mm and aten::addmm of large float32 matrices on a CPU computed by oneDNN, where that is quicker.

    It holds for the whole process, other threads included, and changes results by their rounding alone. Elsewhere, and
    within itself, it changes nothing. Yields a count of products that were computed so.
    """
    counts, least = Counter[str](), onednn_from()
    if least is None or _active:
        yield counts
        return
    with torch.library._scoped_library("aten", "IMPL") as override:
        with warnings.catch_warnings():  # before 2.13, torch tells that a kernel takes another's place, as is meant
            warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel")
            override.impl("mm", partial(_mm, counts, least), "CPU", allow_override=True)
            override.impl("addmm", partial(_addmm, counts, least), "CPU", allow_override=True)
        _active.append(True)
        try:
            yield counts
        finally:
            _active.pop()


_active: list[bool] = []


def _mm(counts: Counter[str], least: int, left: Tensor, right: Tensor) -> Tensor:
    """Do as aten::mm.  left (M, K), right (K, N)."""
    if _suits(least, left, right):
        counts["products of float32"] += 1
        return torch.ops.mkldnn._linear_pointwise.default(left, right.t(), None, "none", [], "")
    return torch.mm(left, right, out=left.new_empty(left.shape[0], right.shape[1]))


def _addmm(
    counts: Counter[str], least: int, added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Do as aten::addmm; what is added to each row is a layer's bias."""
    bias = added.dim() == 1 and added.is_contiguous() and added.shape[0] == right.shape[-1]
    if beta == alpha == 1 and bias and added.dtype == left.dtype and _suits(least, left, right):
        counts["products of float32"] += 1
        return torch.ops.mkldnn._linear_pointwise.default(left, right.t(), added, "none", [], "")
    out = left.new_empty(left.shape[0], right.shape[1])
    return torch.addmm(added, left, right, beta=beta, alpha=alpha, out=out)


def _suits(least: int, left: Tensor, right: Tensor) -> bool:
    if not left.dtype == right.dtype == torch.float32 or left.dim() != 2 or right.dim() != 2:
        return False
    rows, columns, terms = left.shape[0], right.shape[1], left.shape[1]
    large = rows > 1 and rows * columns * terms >= least and terms == right.shape[0]
    return large and _dense(left) and _dense(right)


def _dense(x: Tensor) -> bool:
    """Say whether a matrix's rows or columns are contiguous and do not overlap."""
    (rows, columns), (down, across) = x.shape, x.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)
