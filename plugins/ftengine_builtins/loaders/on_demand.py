"""Faster imports of transformers and torchvision, without work that most programs do not need."""

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

RARELY_CALLED = {
    "torch._dynamo": (),
    "torch._dynamo.utils": ("is_compile_supported",),  # of torchvision.ops.roi_align
    "scipy.optimize": ("linear_sum_assignment",),  # of losses of object detection
}
"""Modules that take 0.1 to 1 s to import, with the functions that these packages use."""


@contextmanager
def imported_on_demand() -> Iterator[None]:
    """Import torchvision and transformers without the modules in RARELY_CALLED; a call of their functions imports them.

    Other attributes of these modules raise ImportError during the block; try again outside it.
    """
    ours = {name: _Placeholder(name, functions) for name, functions in RARELY_CALLED.items() if name not in sys.modules}
    sys.modules |= ours
    try:
        yield
    finally:
        for name, module in ours.items():
            if sys.modules.get(name) is module:
                sys.modules.pop(name)


class _Placeholder(ModuleType):
    """A placeholder of a module, with only some of its functions."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec requires it
        self.__path__: list[str] = []  # no submodules
        vars(self).update((function, _deferred(name, function)) for function in functions)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python looks them up, and continues without them
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            raise ImportError(f"{self.__name__}.{name} is not imported yet: this is a placeholder")
        return getattr(import_module(self.__name__), name)  # a kept reference to the placeholder uses the real module


def _deferred(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return call


@contextmanager
def models_listed_once() -> Iterator[None]:
    """Import `transformers.models` without reading the files of all models again, which saves 0.2 s.

    The cache's keys are folders, but it is called with a file.
    """
    from transformers.utils import import_utils

    listed = import_utils.create_import_structure_from_path

    def by_folder(path: Any) -> Any:
        return listed(Path(path).parent if Path(path).name == "__init__.py" else path)

    with patch.object(import_utils, "create_import_structure_from_path", by_folder):
        yield
