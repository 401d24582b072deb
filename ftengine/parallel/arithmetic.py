"""The kernels that compute a run: which compiled ones are available, and the faster matrix multiplication."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from ftengine.ops import active_backend
from ftengine.ops.products import products_by_onednn


def quick_products() -> AbstractContextManager[None]:
    """Within the block, multiply matrices with this processor's faster library; results differ by rounding."""
    return products_by_onednn()


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Within the block, run a model for inference: no dropout, no gradients, the faster matrix multiplication."""
    model.eval()
    with torch.no_grad(), quick_products():
        yield


def computed_by(device_type: str) -> str:
    """Describe the compiled kernels that are used on a device, or why there are none."""
    return active_backend(device_type)[1]
