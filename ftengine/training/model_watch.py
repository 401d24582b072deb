"""Whether somebody who may look at a model changes it: versions of its tensors, and a few of their numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftengine.parallel.sharding import is_sharded

NUMBERS = 4
"""Of each tensor, from its beginning: what is written past torch's counting of versions changes these too."""


class ModelWatch:
    """Remembers what trains of a model, to say what was changed since.

    Args:
        gradients: whether they count, which are whole before a step alone.
    """

    def __init__(self, module: nn.Module, *, gradients: bool) -> None:
        self._module, self._gradients = module, gradients
        self._before = self._now()

    def changed(self) -> str:
        """Name a tensor that was changed; "" where none was."""
        for name, now in self._now().items():
            if now != self._before.get(name):
                return name
        return ""

    def _now(self) -> dict[str, tuple[int, tuple[float, ...]]]:
        tensors: dict[str, Tensor] = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        if self._gradients:
            tensors |= {f"the gradient of {n}": p.grad for n, p in tensors.items() if p.grad is not None}
        if is_sharded(self._module):
            return {name: (tensor._version, ()) for name, tensor in tensors.items()}
        with torch.no_grad():  # one copy from a device, whatever the number of tensors
            some = [tensor.detach().reshape(-1)[:NUMBERS].double() for tensor in tensors.values()]
            numbers = iter(torch.cat(some).tolist() if some else [])
        return {
            name: (tensor._version, tuple(next(numbers) for _ in range(len(few))))
            for (name, tensor), few in zip(tensors.items(), some, strict=True)
        }
