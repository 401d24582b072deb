"""The whole plugin contract.

A plugin is a module or object, registered under the entry-point group `ftengine`, that implements any
of these hooks with `ftengine.hookimpl`. Component hooks return classes; nothing is built or loaded
until a recipe names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from ftengine.api import Audit, Augmenter, Evaluator, ModelLoader, Regularizer, Strategy, Task

if TYPE_CHECKING:
    from ftengine.run.directory import RunDirectory

hookspec = pluggy.HookspecMarker("ftengine")
hookimpl = pluggy.HookimplMarker("ftengine")


@hookspec
def ftengine_model_loaders() -> Iterable[type[ModelLoader]]:
    """Return classes that turn a model source into a module and its processor."""


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
def ftengine_evaluators() -> Iterable[type[Evaluator]]:
    """Return classes that measure predictions."""


@hookspec
def ftengine_audits() -> Iterable[type[Audit]]:
    """Return classes that look for what is wrong with the data of every run."""


@hookspec
def ftengine_run_started(run: RunDirectory) -> None:
    """See a run before its first step; called in the main process."""


@hookspec
def ftengine_run_finished(run: RunDirectory) -> None:
    """See a run after everything is saved; called in the main process."""
