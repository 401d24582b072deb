"""ftengine: a plugin-based engine for fine-tuning pre-trained models.

>>> from ftengine import Recipe, fine_tune, load_run

Names are imported when first used, so that `import ftengine` and `ftengine --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftengine.engine.answering import Answering
    from ftengine.engine.fine_tune import Run, fine_tune, load_run, plan
    from ftengine.engine.untrained import load_model
    from ftengine.plugins.hookspecs import hookimpl
    from ftengine.plugins.registry import registry_of
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

_HOME = {
    "Answering": "ftengine.engine.answering",
    "Recipe": "ftengine.run.recipe",
    "Run": "ftengine.engine.fine_tune",
    "RunRecords": "ftengine.run.records",
    "fine_tune": "ftengine.engine.fine_tune",
    "hookimpl": "ftengine.plugins.hookspecs",
    "load_model": "ftengine.engine.untrained",
    "load_run": "ftengine.engine.fine_tune",
    "plan": "ftengine.engine.fine_tune",
    "registry_of": "ftengine.plugins.registry",
}

__all__ = [
    "Answering",
    "Recipe",
    "Run",
    "RunRecords",
    "__version__",
    "fine_tune",
    "hookimpl",
    "load_model",
    "load_run",
    "plan",
    "registry_of",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ftengine' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
