"""Modules that are instances of other classes for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def of_classes(modules: Iterable[tuple[nn.Module, type[nn.Module]]]) -> Iterator[None]:
    """Give modules other classes, so that those compute; afterwards each has its own again."""
    pairs = list(modules)
    own = [(module, type(module)) for module, _ in pairs]
    try:
        for module, cls in pairs:
            module.__class__ = cls
        yield
    finally:
        for module, cls in own:
            module.__class__ = cls
