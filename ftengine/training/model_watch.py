"""Whether a callback changes the model that it is shown: by versions of its tensors, and by a few of their numbers."""

from __future__ import annotations

from weakref import ref

import torch
from torch import Tensor, nn

from ftengine.parallel.sharding import is_sharded

NUMBERS = 4
"""Of each tensor, from its beginning: what is written past torch's counting of versions changes these too."""
FIRST, EVERY = 3, 50
"""Steps in which numbers are compared, the first ones and then each so many: hundreds of tensors take 10 ms."""


class ModelWatch:
    """Remembers what trains of a model, to say what was changed since; it keeps no tensor alive.

    Args:
        module: the model; parameters that are exchanged are found where numbers are compared.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._parameters = ref(module), dict[str, ref[nn.Parameter]]()
        self._before = dict[str, tuple[int, tuple[int, ...]]]()
        self._gradients = self._numbers = False

    def is_of(self, module: nn.Module) -> bool:
        """Say whether it watches a model."""
        return self._module() is module

    def look(self, step: int, *, gradients: bool) -> None:
        """Remember the model as it is.

        Args:
            step: of the run.
            gradients: whether they count, which are whole before a step alone.
        """
        self._numbers, self._gradients = step <= FIRST or step % EVERY == 0, gradients
        self._before = self._now()

    def changed(self) -> str:
        """Name a tensor that was changed since the last look; "" where none was."""
        return next((name for name, now in self._now().items() if now != self._before.get(name)), "")

    def _now(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Return the version and, where they are compared, bits of some numbers of each tensor."""
        if (module := self._module()) is None:
            return {}
        if self._numbers or not self._parameters:
            self._parameters = {name: ref(parameter) for name, parameter in module.named_parameters()}
        found = ((name, parameter()) for name, parameter in self._parameters.items())
        tensors: dict[str, Tensor] = {name: p for name, p in found if p is not None and p.requires_grad}
        if self._gradients:
            tensors |= {f"the gradient of {n}": p.grad for n, p in tensors.items() if p.grad is not None}
        if not self._numbers or is_sharded(module):
            return {name: (tensor._version, ()) for name, tensor in tensors.items()}
        with torch.no_grad():  # one copy from a device, whatever the number of tensors
            some = [_first(tensor.detach()) for tensor in tensors.values()]
            if len({few.device for few in some}) > 1:
                some = [few.cpu() for few in some]
            bits = iter(torch.cat(some).view(torch.int64).tolist() if some else [])
        return {
            name: (tensor._version, tuple(next(bits) for _ in range(len(few))))
            for (name, tensor), few in zip(tensors.items(), some, strict=True)
        }


def _first(tensor: Tensor) -> Tensor:
    """Return the first numbers of a tensor, (n,) in float64; where it is not contiguous, one, without a copy."""
    few = tensor.flatten()[:NUMBERS] if tensor.is_contiguous() else tensor[(0,) * tensor.ndim].reshape(1)
    return (torch.view_as_real(few.resolve_conj()).flatten() if few.is_complex() else few).double()
