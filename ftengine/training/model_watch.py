"""Detects changes of the model by callbacks, by the versions of its tensors and a few of their values."""

from __future__ import annotations

from weakref import ref

import torch
from torch import Tensor, nn

from ftengine.parallel.sharding import is_sharded

NUMBERS = 4
"""Values from the beginning of each tensor that are compared; some changes do not raise torch's version counter."""
FIRST, EVERY = 3, 50
"""Values are compared in the first steps and then every so many, because hundreds of tensors take 10 ms."""


class ModelWatch:
    """Records the state of a model's trainable tensors, to detect changes; it keeps no tensor alive.

    Args:
        module: the model; parameters that are replaced by others are detected in steps that compare values.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._parameters = ref(module), dict[str, ref[nn.Parameter]]()
        self._before = dict[str, tuple[int, tuple[int, ...]]]()
        self._gradients = self._numbers = False

    def is_of(self, module: nn.Module) -> bool:
        """Return whether this watches a model."""
        return self._module() is module

    def look(self, step: int, *, gradients: bool) -> None:
        """Record the present state of the model.

        Args:
            step: the run's step.
            gradients: whether to record gradients too, which are complete only before a step.
        """
        self._numbers, self._gradients = step <= FIRST or step % EVERY == 0, gradients
        self._before = self._now()

    def changed(self) -> str:
        """Return the name of a tensor that changed since `look`; "" if none did."""
        return next((name for name, now in self._now().items() if now != self._before.get(name)), "")

    def _now(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Return for each tensor its version and, in steps that compare values, the bits of some values."""
        if (module := self._module()) is None:
            return {}
        if self._numbers or not self._parameters:
            self._parameters = {name: ref(parameter) for name, parameter in module.named_parameters()}
        current = ((name, parameter()) for name, parameter in self._parameters.items())
        tensors: dict[str, Tensor] = {name: p for name, p in current if p is not None and p.requires_grad}
        if self._gradients:
            tensors |= {f"the gradient of {n}": p.grad for n, p in tensors.items() if p.grad is not None}
        if not self._numbers or is_sharded(module):
            return {name: (tensor._version, ()) for name, tensor in tensors.items()}
        with torch.no_grad():  # a single copy from the device for all tensors
            some = [_first(tensor.detach()) for tensor in tensors.values()]
            if len({few.device for few in some}) > 1:
                some = [few.cpu() for few in some]
            bits = iter(torch.cat(some).view(torch.int64).tolist() if some else [])
        return {
            name: (tensor._version, tuple(next(bits) for _ in range(len(few))))
            for (name, tensor), few in zip(tensors.items(), some, strict=True)
        }


def _first(tensor: Tensor) -> Tensor:
    """Return the first values of a tensor, (n,) in float64; only one, without a copy, if it is not contiguous."""
    few = tensor.flatten()[:NUMBERS] if tensor.is_contiguous() else tensor[(0,) * tensor.ndim].reshape(1)
    return (torch.view_as_real(few.resolve_conj()).flatten() if few.is_complex() else few).double()
