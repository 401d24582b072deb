"""Detection of state of components that changes from step to step but is not in checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Component
from ftengine.plugins.attribution import named

NUMBERS, ITEMS, DEPTH = 16, 1_000, 3
"""Most values of a tensor and items of a list that are compared, and the depth of nested lists."""

Remembered = dict[str, Any]
"""An object's attributes of known types, in a form that can be compared."""


def remembered(owner: object, module: nn.Module, own: Iterable[str] = ()) -> Remembered:
    """Return an object's present attributes, without the model's tensors.

    Args:
        own: names of attributes that are in checkpoints.
    """
    of_model = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    values = {name: _comparable(value, of_model, DEPTH) for name, value in vars(owner).items() if name not in own}
    return {name: value for name, value in values.items() if value is not None}


def moving(before: Remembered, after: Remembered) -> list[str]:
    """Return the names of attributes that changed."""
    return sorted(name for name in before if after.get(name) != before[name])


def _comparable(value: Any, of_model: set[int], depth: int) -> Any:
    """Return a value in a form that == compares; None if its type is not known."""
    if isinstance(value, Tensor):
        if value.is_meta or value.data_ptr() in of_model:
            return None
        return tuple(value.shape), tuple(value.detach().reshape(-1)[:NUMBERS].tolist())
    if isinstance(value, bool | int | float | str):
        return type(value).__name__, value
    if not depth:
        return None
    if isinstance(value, Mapping):
        items = list(value.items())[:ITEMS]
        return [(str(key), _comparable(item, of_model, depth - 1)) for key, item in items]
    if isinstance(value, list | tuple):
        return [_comparable(item, of_model, depth - 1) for item in value[:ITEMS]]
    return None


OPTIMIZER = frozenset({"state", "param_groups", "defaults"})
"""Attributes of an optimiser that are in checkpoints or come from the recipe."""


def remembered_by_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module) -> Remembered:
    """Return an optimiser's attributes other than state and groups; names with a leading _ belong to torch."""
    return {n: x for n, x in remembered(optimizer, module, OPTIMIZER).items() if not n.startswith("_")}


class UnsavedState:
    """Compares components' attributes after the first two steps of a process.

    Args:
        components: each with whether checkpoints hold state of it; if so, it is responsible for all its state.
    """

    def __init__(
        self, components: Mapping[Component, bool], optimizer: torch.optim.Optimizer, by: Component, module: nn.Module
    ) -> None:
        self._components = [component for component, is_saved in components.items() if not is_saved]
        self._optimizer, self._by, self._module = optimizer, by, module
        self._before: list[Remembered] | None = None
        self._reported = False

    def look(self) -> list[str]:
        """Return, after the second step, a message for each component with unsaved state; after others nothing."""
        if self._reported:
            return []
        now = [remembered(component, self._module) for component in self._components]
        now.append(remembered_by_optimizer(self._optimizer, self._module))
        before, self._before = self._before, now
        if before is None:
            return []
        self._reported = True
        owners = [*self._components, self._by]
        return [
            f"{named(owner)} has {', '.join(map(repr, names))}, which changes from step to step but is not in "
            "checkpoints: if later steps depend on it, a resumed run will differ"
            for owner, earlier, later in zip(owners, before, now, strict=True)
            if (names := moving(earlier, later))
        ]
