"""What training on a CPU asks of the libraries below it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ftengine.ops.replacing import fast_dropout
from ftengine.parallel.sharding import is_sharded
from ftengine.training.norms import fuse_norms, restore_norms

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


def prepare_cpu() -> None:
    """Have memory that a step frees kept for the next one.

    glibc gives large blocks back to the system when they are freed, and each step would pay for their pages again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, 1 << 30):
            mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that older ones take
        mallopt(M_TRIM_THRESHOLD, -1)
