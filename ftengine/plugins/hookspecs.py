"""The whole plugin contract.

A plugin is a module or object, registered under the entry-point group `ftengine`, that implements any of these hooks
with `ftengine.hookimpl`. Every hook returns classes. Audits and rules are used in every run, the others if a recipe or
a command names them.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from ftengine import api

__all__ = [
    "ftengine_audits",
    "ftengine_augmenters",
    "ftengine_callbacks",
    "ftengine_evaluators",
    "ftengine_exporters",
    "ftengine_model_loaders",
    "ftengine_optimizers",
    "ftengine_readers",
    "ftengine_regularizers",
    "ftengine_rules",
    "ftengine_schedules",
    "ftengine_strategies",
    "ftengine_tasks",
    "hookimpl",
    "hookspec",
]

hookspec = pluggy.HookspecMarker("ftengine")
hookimpl = pluggy.HookimplMarker("ftengine")
"""Marks the functions with which a plugin offers its classes."""


@hookspec
def ftengine_model_loaders() -> Iterable[type[api.ModelLoader]]:
    """Return classes that turn a model source into a module and its processor."""


@hookspec
def ftengine_readers() -> Iterable[type[api.Reader]]:
    """Return classes that read a format of data."""


@hookspec
def ftengine_tasks() -> Iterable[type[api.Task]]:
    """Return classes that define an example, its encoding, and the loss."""


@hookspec
def ftengine_strategies() -> Iterable[type[api.Strategy]]:
    """Return classes that decide which parameters train."""


@hookspec
def ftengine_augmenters() -> Iterable[type[api.Augmenter]]:
    """Return classes that make training examples from a training example."""


@hookspec
def ftengine_regularizers() -> Iterable[type[api.Regularizer]]:
    """Return classes that add a penalty to the loss or change the model while it trains."""


@hookspec
def ftengine_fast_paths() -> Iterable[type[api.FastPath]]:
    """Return classes that make training faster without changing its results."""


@hookspec
def ftengine_optimizers() -> Iterable[type[api.Optimizer]]:
    """Return classes that make optimizers."""


@hookspec
def ftengine_schedules() -> Iterable[type[api.Schedule]]:
    """Return classes that make learning-rate schedules."""


@hookspec
def ftengine_evaluators() -> Iterable[type[api.Evaluator]]:
    """Return classes that measure predictions."""


@hookspec
def ftengine_audits() -> Iterable[type[api.Audit]]:
    """Return classes that look for problems in data."""


@hookspec
def ftengine_rules() -> Iterable[type[api.Rule]]:
    """Return classes that judge finished runs."""


@hookspec
def ftengine_callbacks() -> Iterable[type[api.Callback]]:
    """Return classes that have methods called at the moments of a run."""


@hookspec
def ftengine_exporters() -> Iterable[type[api.Exporter]]:
    """Return classes that write finished runs in the formats of other programs."""
