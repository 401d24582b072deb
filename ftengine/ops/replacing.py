"""Kernels in the place of torch's own, for a while: dropout on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ftengine.ops.dropout import draw_seed, quantise_dropout
from ftengine.ops.elementwise import dropout
from ftengine.ops.eligibility import DTYPES


@contextmanager
def fast_dropout() -> Iterator[None]:
    """Have dropout in any model, that inside of attention too, draw its masks by a compiled kernel.

    torch draws the numbers of a CPU one by one and keeps the mask for the backward pass; this keeps a seed, drawn from
    torch's generator. The probability is rounded to a multiple of 1/65536. Dropout in place, of whole features, and in
    dtypes without a kernel stays torch's. Attention with dropout looks through all scores for rows that are masked
    throughout; here their softmax tells.
    """
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ftengine::dropout", "CPU"):
        yield
        return
    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():  # before 2.13, torch tells that a kernel takes another's place, as is meant
            warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel")
            library.impl("dropout", _dropout, "AutogradCPU", allow_override=True)
            library.impl("_safe_softmax", _safe_softmax, "CPU", allow_override=True)
        yield


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Do as aten::dropout."""
    if not 0 <= p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not train or p == 0 or not x.numel():
        return x
    if p == 1 or x.dtype not in DTYPES["cpu"]:
        return torch.native_dropout(x, p, True)[0]
    applied = quantise_dropout(p)
    return dropout(x, applied, draw_seed()) if applied else x


def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Do as aten::_safe_softmax: zeros where a row holds nothing but -inf, which softmax makes NaN."""
    y = torch.softmax(x, dim, dtype)
    if y.numel() and y.dim() and y.select(dim, 0).isnan().any():
        y = torch.where(x.isneginf().all(dim, keepdim=True), 0, y)
    return y
