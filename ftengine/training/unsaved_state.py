"""What components remember from step to step, and leave out of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Component
from ftengine.plugins.attribution import named

NUMBERS, ITEMS, DEPTH = 16, 1_000, 3
"""Numbers of a tensor and items of a list that are looked at, and how far lists are looked into."""

Remembered = dict[str, Any]
"""Of an object's attributes, those whose kind is known, as what can be compared."""


def remembered(owner: object, module: nn.Module, own: Iterable[str] = ()) -> Remembered:
    """Return what an object holds now, without the model's own tensors.

    Args:
        own: names of attributes that checkpoints hold.
    """
    of_model = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    found = {name: _comparable(value, of_model, DEPTH) for name, value in vars(owner).items() if name not in own}
    return {name: value for name, value in found.items() if value is not None}


def moving(before: Remembered, after: Remembered) -> list[str]:
    """Return the names of what has changed."""
    return sorted(name for name in before if after.get(name) != before[name])


def _comparable(value: Any, of_model: set[int], depth: int) -> Any:
    """Return a value as what can be compared with ==; None where its kind is not known."""
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
        return [(str(key), _comparable(one, of_model, depth - 1)) for key, one in items]
    if isinstance(value, list | tuple):
        return [_comparable(one, of_model, depth - 1) for one in value[:ITEMS]]
    return None


OPTIMIZER = frozenset({"state", "param_groups", "defaults"})
"""What checkpoints hold of an optimiser, and what it was built with."""


def remembered_by_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module) -> Remembered:
    """Return what an optimiser holds beside its state and groups; names that begin with _ are torch's own."""
    return {n: x for n, x in remembered(optimizer, module, OPTIMIZER).items() if not n.startswith("_")}


class UnsavedState:
    """Looks at components after the first two steps of a process.

    Args:
        held: whether checkpoints hold what a component remembers, which is then its own to keep whole.
    """

    def __init__(
        self, components: Mapping[Component, bool], optimizer: torch.optim.Optimizer, by: Component, module: nn.Module
    ) -> None:
        self._components = [component for component, held in components.items() if not held]
        self._optimizer, self._by, self._module = optimizer, by, module
        self._before: list[Remembered] | None = None
        self._told = False

    def look(self) -> list[str]:
        """Say, after the second step, who remembers what; nothing after any other."""
        if self._told:
            return []
        now = [remembered(component, self._module) for component in self._components]
        now.append(remembered_by_optimizer(self._optimizer, self._module))
        before, self._before = self._before, now
        if before is None:
            return []
        self._told = True
        owners = [*self._components, self._by]
        return [
            f"{named(owner)} holds {', '.join(map(repr, names))}, which changes from step to step and is in no "
            "checkpoint: where later steps depend on it, a resumed run goes another way"
            for owner, one, other in zip(owners, before, now, strict=True)
            if (names := moving(one, other))
        ]
