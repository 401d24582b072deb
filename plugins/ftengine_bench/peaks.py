"""What the device can do at best: measured here and now, not read from a data sheet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ftengine_bench.providers import dtype_name
from ftengine_bench.timing import Action, Clock, measure

COPIED_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Far larger than any cache."""

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
"""M = K = N, large enough for a product to be at its best rate."""


@dataclass(frozen=True)
class Peak:
    """Rates of a device in one dtype.

    Args:
        dtype: the dtype's name.
        copy_bytes_a_second: read and written together, of a large copy.
        operations_a_second: of a large square product, two for each multiply and add.
    """

    dtype: str
    copy_bytes_a_second: float
    operations_a_second: float


def measure_peak(dtype: torch.dtype, device: str, clock: Clock, seconds: float) -> Peak:
    """Time a large copy and a large product; the fastest of each is what the device can do."""
    count, size = COPIED_BYTES[device] // dtype.itemsize, PRODUCT_SIZE[device]
    source = torch.ones(count, dtype=dtype, device=device)
    target = torch.empty_like(source)
    left = torch.randn(size, size, dtype=dtype, device=device)
    right = torch.randn(size, size, dtype=dtype, device=device)
    product = torch.empty_like(left)
    actions = {
        "copy": Action([lambda: target.copy_(source)]),
        "product": Action([lambda: torch.mm(left, right.t(), out=product)]),
    }
    times = measure(actions, clock, seconds)
    copy, matmul = (min(parts[0] for parts in times[name]) for name in ("copy", "product"))
    return Peak(dtype_name(dtype), 2 * source.nbytes / copy, 2 * size**3 / matmul)
