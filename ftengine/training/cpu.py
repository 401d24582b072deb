"""What training on a CPU asks of the libraries below it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ftengine.ops import draw_seed, quantise_dropout
from ftengine.ops.elementwise import dropout
from ftengine.ops.eligibility import DTYPES
from ftengine.training.norms import fuse_norms, restore_norms
from ftengine.training.sharding import is_sharded

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, as malloc.h has them."""


@contextmanager
def quick_on_cpu(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a model compute on a CPU what training computes by what is quickest there; elsewhere nothing changes."""
    if device.type != "cpu":
        yield
        return
    fused = [] if is_sharded(model) else fuse_norms(model)
    try:
        with grouped_keys(), fast_dropout():
            yield
    finally:
        restore_norms(fused)


GROUPED = "TRANSFORMERS_SDPA_FORCE_GQA"


@contextmanager
def grouped_keys() -> Iterator[None]:
    """Have attention read grouped keys where they lie, unless the environment says otherwise.

    transformers repeats keys and values for each query head where a batch is padded, which torch's attention on a CPU
    does not need.
    """
    said = GROUPED in os.environ
    os.environ.setdefault(GROUPED, "1")
    try:
        yield
    finally:
        if not said:
            del os.environ[GROUPED]


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


def prepare_cpu() -> None:
    """Have memory that a step frees kept for the next one.

    glibc gives large blocks back to the system when they are freed, and each step would pay for their pages again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, 1 << 30):
            mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that older ones take
        mallopt(M_TRIM_THRESHOLD, -1)
