"""Dropout of a model that trains on a CPU, with masks drawn by a compiled kernel."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ftengine.api import FastPath, FastPathTraits, LoadedModel, TrainingContext
from ftengine.model import drops
from ftengine.ops.dropout import draw_seed, quantise_dropout
from ftengine.ops.elementwise import dropout
from ftengine.ops.eligibility import DTYPES
from ftengine_builtins.fast_paths.cpu import require_kernels


class CpuDropout(FastPath):
    """Dropout on a CPU, including that of attention, with masks drawn by a compiled kernel.

    On a CPU, torch draws random numbers one by one and saves the mask for the backward pass; this path saves a seed,
    drawn from torch's generator. The probability is rounded to a multiple of 1/65536. torch still computes in-place
    dropout, dropout of whole features, and dtypes without a kernel. For attention with dropout, torch searches all
    scores for fully masked rows, which this path finds in the softmax.
    """

    name = "cpu-dropout"
    traits = FastPathTraits(supports_sharding=True, draws_randomness=True)

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        """Override aten's dropout; yields counts of calls."""
        if not any(map(drops, loaded.module.modules())):
            yield None
            return
        calls = Counter[str]()
        with torch.library._scoped_library("aten", "IMPL") as library:
            with warnings.catch_warnings():  # before 2.13, torch tells that a kernel takes another's place, as is meant
                warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel")
                library.impl("dropout", partial(_dropout, calls), "AutogradCPU", allow_override=True)
                library.impl("_safe_softmax", _safe_softmax, "CPU", allow_override=True)
            yield calls


def _dropout(calls: Counter[str], x: Tensor, p: float, train: bool) -> Tensor:
    """Do as aten::dropout, and count it."""
    if not 0 <= p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not train or p == 0 or not x.numel():
        return x
    if p == 1 or x.dtype not in DTYPES["cpu"]:
        return torch.native_dropout(x, p, True)[0]
    calls["dropout"] += 1
    applied = quantise_dropout(p)
    return dropout(x, applied, draw_seed()) if applied else x


def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Do as aten::_safe_softmax: zeros where a row holds nothing but -inf, which softmax makes NaN."""
    y = torch.softmax(x, dim, dtype)
    if y.numel() and y.dim() and y.select(dim, 0).isnan().any():
        y = torch.where(x.isneginf().all(dim, keepdim=True), 0, y)
    return y
