"""torch's compiler, which takes a second to import, where a library asks for it without need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

PACKAGE, ASKED = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Let torchvision be imported without `torch._dynamo` and sympy, which it takes for one function.

    transformers imports torchvision with every configuration; `torchvision.ops.roi_align` alone calls that function.
    What else of the compiler is imported here fails (ImportError), and can be tried again outside.
    """
    if PACKAGE in sys.modules:
        yield
        return
    package, asked = _StandIn(PACKAGE), _StandIn(ASKED)
    package.__path__ = []  # without any other module
    asked.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    ours = {PACKAGE: package, ASKED: asked}
    sys.modules |= ours
    try:
        yield
    finally:
        for name, module in ours.items():
            if sys.modules.get(name) is module:
                sys.modules.pop(name)


class _StandIn(ModuleType):
    """A module that has little of the one in whose place it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for these, and goes on without
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name} is not imported yet, only what torchvision is imported with")


def is_compile_supported(device_type: Any) -> Any:
    """Ask the compiler."""
    from torch._dynamo import utils

    return utils.is_compile_supported(device_type)
