"""By what a processor computes: which kernels there are beside torch's, and which of two multiplies matrices faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from ftengine.ops import active_backend
from ftengine.ops.products import products_by_onednn


def quick_products() -> AbstractContextManager[None]:
    """Have matrices multiplied by what is quicker on this processor: the same numbers but for their rounding."""
    return products_by_onednn()


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Run a model for its answers from here on: no dropout, no gradients, products by what is quicker for them."""
    model.eval()
    with torch.no_grad(), quick_products():
        yield


def computed_by(device_type: str) -> str:
    """Say what computes on a device beside torch: which compiled kernels, or why none."""
    return active_backend(device_type)[1]
