"""Components as if a distribution of somebody else's offered them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ftengine import hookimpl, registry_of
from ftengine.api import Component
from ftengine.plugins.registry import KINDS, Registry


def registry_with(*classes: type[Component], distribution: str = "odd") -> Registry:
    """Return a registry of what is installed and of a distribution that offers these classes."""
    offered: dict[str, list[type[Component]]] = {}
    for cls in classes:
        offered.setdefault(next(hook for base, hook in KINDS.values() if issubclass(cls, base)), []).append(cls)
    hooks: dict[str, Any] = {
        name: hookimpl(lambda found=found: found, specname=name) for name, found in offered.items()
    }
    return registry_of({distribution: SimpleNamespace(**hooks)})
