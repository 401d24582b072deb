"""ftengine: a plugin-based engine for fine-tuning pre-trained models.

>>> from ftengine import Recipe, fine_tune, load_run

Names are imported when first used, so that `import ftengine` and `ftengine --help` stay fast.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftengine.engine.answering import Answering
    from ftengine.engine.chat import Chat
    from ftengine.engine.experiment import Experiment
    from ftengine.engine.fine_tune import Run, fine_tune, load_run, plan
    from ftengine.engine.prepared_data import prepare_data
    from ftengine.engine.shared import Shared
    from ftengine.engine.untrained import load_model
    from ftengine.plugins.hookspecs import hookimpl
    from ftengine.plugins.registry import registry_of
    from ftengine.run.progress import listening
    from ftengine.run.recipe import Recipe
    from ftengine.run.records import RunRecords

__version__ = "0.1.0"

PACKAGES = (
    "ftengine",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "safetensors",
    "peft",
    "pluggy",
    "numpy",
)
"""Packages whose versions a run records (`ftengine.run.environment.versions`)."""

_HOMES = {
    "ftengine.engine.answering": "Answering",
    "ftengine.engine.chat": "Chat",
    "ftengine.engine.experiment": "Experiment",
    "ftengine.engine.fine_tune": "Run fine_tune load_run plan",
    "ftengine.engine.prepared_data": "prepare_data",
    "ftengine.engine.shared": "Shared",
    "ftengine.engine.untrained": "load_model",
    "ftengine.plugins.hookspecs": "hookimpl",
    "ftengine.plugins.registry": "registry_of",
    "ftengine.run.progress": "listening",
    "ftengine.run.recipe": "Recipe",
    "ftengine.run.records": "RunRecords",
}

__all__ = [
    "Answering",
    "Chat",
    "Experiment",
    "Recipe",
    "Run",
    "RunRecords",
    "Shared",
    "__version__",
    "fine_tune",
    "hookimpl",
    "listening",
    "load_model",
    "load_run",
    "plan",
    "prepare_data",
    "registry_of",
]


def lazy_attributes(
    module: str, homes: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a module whose names are imported when they are first used.

    Args:
        module: its `__name__`.
        homes: by module, the names that are imported from it, separated by spaces.
    """
    home = {name: source for source, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = vars(sys.modules[module])[name] = getattr(import_module(home[name]), name)
        return value

    return sorted(home), get, lambda: sys.modules[module].__all__


_, __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
