"""The whole plugin contract.

A plugin is a module or object, registered under the entry-point group `ftengine`, that implements any
of these hooks with `ftengine.hookimpl`. Every hook returns classes. Audits and rules are built for every run, the
others when a recipe names them.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from ftengine.api import (
    Audit,
    Augmenter,
    Callback,
    Evaluator,
    ModelLoader,
    Optimizer,
    Reader,
    Regularizer,
    Rule,
    Schedule,
    Strategy,
    Task,
)

hookspec = pluggy.HookspecMarker("ftengine")
hookimpl = pluggy.HookimplMarker("ftengine")


@hookspec
def ftengine_model_loaders() -> Iterable[type[ModelLoader]]:
    """Return classes that turn a model source into a module and its processor."""


@hookspec
def ftengine_readers() -> Iterable[type[Reader]]:
    """Return classes that read a format of data."""


@hookspec
def ftengine_tasks() -> Iterable[type[Task]]:
    """Return classes that say what an example looks like, how it is encoded, and what the loss is."""


@hookspec
def ftengine_strategies() -> Iterable[type[Strategy]]:
    """Return classes that decide which parameters train."""


@hookspec
def ftengine_augmenters() -> Iterable[type[Augmenter]]:
    """Return classes that make training examples from a training example."""


@hookspec
def ftengine_regularizers() -> Iterable[type[Regularizer]]:
    """Return classes that add a penalty to the loss or change the model while it trains."""


@hookspec
def ftengine_optimizers() -> Iterable[type[Optimizer]]:
    """Return classes that say how gradients change what trains."""


@hookspec
def ftengine_schedules() -> Iterable[type[Schedule]]:
    """Return classes that say how the learning rate moves."""


@hookspec
def ftengine_evaluators() -> Iterable[type[Evaluator]]:
    """Return classes that measure predictions."""


@hookspec
def ftengine_audits() -> Iterable[type[Audit]]:
    """Return classes that look for what is wrong with data."""


@hookspec
def ftengine_rules() -> Iterable[type[Rule]]:
    """Return classes that judge finished runs."""


@hookspec
def ftengine_callbacks() -> Iterable[type[Callback]]:
    """Return classes that are told of a run's events."""
