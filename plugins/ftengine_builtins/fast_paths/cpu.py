"""Shared by fast paths for CPUs: required kernels, and modules with another `forward`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

from ftengine.api import InferencePath, LoadedModel, TrainingContext
from ftengine.errors import RecipeError
from ftengine.ops import active_backend

DTYPES = (torch.float32, torch.bfloat16)
"""What there are kernels for."""

Forward = Callable[..., Any]
"""A module's `forward`, with the module as its first argument."""


class CpuKernels(InferencePath):
    """A fast path that computes parts of a model on a CPU by compiled operations, in generation too."""

    counted: ClassVar[str]
    """What is computed so, as plans name it."""

    @abstractmethod
    def replaced(self, model: nn.Module) -> AbstractContextManager[int]:
        """Within the block, compute parts of a model by compiled operations; yields their number."""

    def check_device(self, device: torch.device) -> None:
        require_kernels(self.name, device)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        with self.replaced(loaded.module) as count:
            yield {self.counted: count} if count else None

    def suits(self, model: nn.Module) -> bool:
        weight = next(model.parameters(), None)
        on_cpu = weight is not None and weight.device.type == "cpu" and weight.dtype in DTYPES
        return on_cpu and active_backend("cpu")[0] == "compiled"

    def around_generation(self, model: nn.Module) -> AbstractContextManager[Any]:
        return self.replaced(model) if self.suits(model) else nullcontext()


def require_kernels(name: str, device: torch.device) -> None:
    """Refuse a device other than a CPU, or without compiled kernels (RecipeError)."""
    if device.type != "cpu":
        raise RecipeError(f"fast path {name!r} is for CPUs, and the model computes on {device}")
    backend, reason = active_backend("cpu")
    if backend != "compiled":
        raise RecipeError(f"fast path {name!r} needs compiled kernels: {reason}")


@contextmanager
def other_forwards(model: nn.Module, forward_of: Callable[[nn.Module], Forward | None]) -> Iterator[int]:
    """Within the block, replace the `forward` of modules by those that a function returns; yields their number.

    Modules keep their class, parameters and hooks. An instance that already has its own `forward` is left alone.
    """
    changed = list[nn.Module]()
    try:
        for module in model.modules():
            forward = None if "forward" in vars(module) else forward_of(module)
            if forward is not None:
                vars(module)["forward"] = forward.__get__(module)  # type: ignore[attr-defined]
                changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            vars(module).pop("forward", None)
