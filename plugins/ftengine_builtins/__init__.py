"""The components that ship with ftengine, offered through the same hooks as those of any plugin.

Hooks import their classes when they are called, so registering costs nothing. To derive a class from one of these,
import it from the package of its kind: `from ftengine_builtins.strategies import LoRA`.
"""

from importlib import import_module

from ftengine import hookimpl


def _offered(kind: str) -> list[type]:
    """Return the classes that the package of a kind publishes."""
    package = import_module(f"ftengine_builtins.{kind}")
    published = [getattr(package, name) for name in package.__all__]
    return [cls for cls in published if hasattr(cls, "name")]  # others are bases for plugins to derive from


@hookimpl
def ftengine_model_loaders():
    return _offered("loaders")


@hookimpl
def ftengine_readers():
    return _offered("readers")


@hookimpl
def ftengine_tasks():
    return _offered("tasks")


@hookimpl
def ftengine_strategies():
    return _offered("strategies")


@hookimpl
def ftengine_augmenters():
    return _offered("augmenters")


@hookimpl
def ftengine_regularizers():
    return _offered("regularizers")


@hookimpl
def ftengine_fast_paths():
    return _offered("fast_paths")


@hookimpl
def ftengine_optimizers():
    return _offered("optimizers")


@hookimpl
def ftengine_schedules():
    return _offered("schedules")


@hookimpl
def ftengine_evaluators():
    return _offered("evaluators")


@hookimpl
def ftengine_callbacks():
    from ftengine_builtins.callbacks import TRACKERS

    return TRACKERS


@hookimpl
def ftengine_audits():
    return _offered("audits")


@hookimpl
def ftengine_rules():
    return _offered("rules")


@hookimpl
def ftengine_exporters():
    return _offered("exporters")
