"""What transformers and torchvision do as they are imported, and most programs have no need of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

SELDOM_CALLED = {
    "torch._dynamo": (),
    "torch._dynamo.utils": ("is_compile_supported",),  # of torchvision.ops.roi_align
    "scipy.optimize": ("linear_sum_assignment",),  # of losses of object detection
}
"""Modules that take 0.1 to 1 s to import, and the functions for which these packages import them."""


@contextmanager
def imported_on_demand() -> Iterator[None]:
    """Let torchvision and transformers be imported without `SELDOM_CALLED`, which a call of its functions imports.

    What else of these modules is asked for meanwhile fails (ImportError), and can be tried again outside.
    """
    ours = {name: _StandIn(name, functions) for name, functions in SELDOM_CALLED.items() if name not in sys.modules}
    sys.modules |= ours
    try:
        yield
    finally:
        for name, module in ours.items():
            if sys.modules.get(name) is module:
                sys.modules.pop(name)


class _StandIn(ModuleType):
    """A module that has little of the one in whose place it is."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # which importlib.util.find_spec asks for
        self.__path__: list[str] = []  # without any other module
        vars(self).update((function, _deferred(name, function)) for function in functions)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for these, and goes on without
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            raise ImportError(f"{self.__name__}.{name} is not imported yet, only what is seldom called")
        return getattr(import_module(self.__name__), name)  # whoever has it in its own hands goes on with the real one


def _deferred(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return call


@contextmanager
def models_listed_once() -> Iterator[None]:
    """Let `transformers.models` be imported without reading the files of all models, as `transformers` just has.

    Its cache knows what it found by the folder, and is asked by the file in it: 0.2 s.
    """
    from transformers.utils import import_utils

    listed = import_utils.create_import_structure_from_path

    def by_folder(path: Any) -> Any:
        return listed(Path(path).parent if Path(path).name == "__init__.py" else path)

    with patch.object(import_utils, "create_import_structure_from_path", by_folder):
        yield
