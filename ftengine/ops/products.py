"""Products of float32 matrices by oneDNN, for processors on which torch's default is slow.

Torch multiplies float32 with MKL, whose AVX-512 code runs only on Intel processors. oneDNN, which every torch for x86
includes and uses for bfloat16, runs its AVX-512 code on all. ftengine's low-rank layers always use the faster one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from ftengine.ops.library import onednn_from

LEAST_ROWS = 8
"""Fewer are not oneDNN's strength."""


@contextmanager
def products_by_onednn() -> Iterator[None]:
    """Within the block, let oneDNN compute aten::mm and aten::addmm of large float32 matrices, if faster.

    It applies to the whole process until the last such block ends, and changes results only by rounding. The first call
    replaces ATen's kernels for good, as another thread may be about to call a kernel that is removed. The replacement
    costs a small product 3 µs.
    """
    least = onednn_from()
    if least is None:
        yield
        return
    with _USE.lock:
        _USE.register()
        _USE.users, _USE.least = _USE.users + 1, least
    try:
        yield
    finally:
        with _USE.lock:
            _USE.users -= 1


class _Use:
    """Who asks for it, and from which M·N·K on it is done."""

    def __init__(self) -> None:
        self.lock, self.users, self.least = Lock(), 0, 0
        self._library: torch.library.Library | None = None

    def register(self) -> None:
        if self._library is not None:
            return
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # before 2.13, torch tells that a kernel takes another's place, as is meant
            warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel")
            self._library.impl("mm", _mm, "CPU", allow_override=True)
            self._library.impl("addmm", _addmm, "CPU", allow_override=True)


_USE = _Use()


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """Do as aten::mm.  left (M, K), right (K, N)."""
    if _USE.users and _suits(left, right):
        return torch.ops.mkldnn._linear_pointwise.default(left, right.t(), None, "none", [], "")
    return torch.mm(left, right, out=left.new_empty(0))


def _addmm(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Do as aten::addmm; what is added to each row is a layer's bias."""
    bias = beta == alpha == 1 and added.dim() == 1 and added.is_contiguous() and added.dtype == left.dtype
    if bias and _USE.users and _suits(left, right) and added.shape[0] == right.shape[1]:
        return torch.ops.mkldnn._linear_pointwise.default(left, right.t(), added, "none", [], "")
    return torch.addmm(added, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _suits(left: Tensor, right: Tensor) -> bool:
    if not left.dtype == right.dtype == torch.float32 or left.dim() != 2 or right.dim() != 2:
        return False
    rows, columns, terms = left.shape[0], right.shape[1], left.shape[1]
    large = rows >= LEAST_ROWS and rows * columns * terms >= _USE.least and terms == right.shape[0]
    return large and _dense(left) and _dense(right)


def _dense(x: Tensor) -> bool:
    """Return whether a matrix's rows or columns are contiguous and do not overlap."""
    (rows, columns), (down, across) = x.shape, x.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)
