"""Callbacks: whoever wants to know what happens in a run, while it happens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, whose folder is `run`, after `step` optimiser steps."""

    run: Path
    step: int


@dataclass(frozen=True)
class Started(Event):
    """Training begins, or goes on after `step` steps where a run is resumed; `recipe` is resolved."""

    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class BeforeStep(Event):
    """The gradients of a step are ready: added up over the effective batch, divided by its weight, and clipped.

    The parameters of `model` have them as `grad` (None: no part of this step) until regularizers saw the step.

    Args:
        step: the step that is taken next, as metrics.jsonl will count it.
        norm: of all gradients before they were clipped to `train.max_grad_norm`.
    """

    model: nn.Module
    norm: float


@dataclass(frozen=True)
class Stepped(Event):
    """An optimiser step is done; `figures` is its line of metrics.jsonl."""

    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Validated(Event):
    """The model was validated; `figures` is the line of metrics.jsonl."""

    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint, or the trained part at the end, was written to `folder`."""

    folder: Path


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete, with verdict and report; `evaluation` is what evaluation.json holds."""

    evaluation: Mapping[str, Any]


@dataclass(frozen=True)
class Failed(Event):
    """Training ended with an error, which is raised after all callbacks were told."""

    error: BaseException


class Callback(Component):
    """Is told of a run's events, in the main process; named under `callbacks` in a recipe.

    A callback that raises is named and left out from then on, and the run goes on. One that is to end the run raises
    `ftengine.errors.TrainingError`: what training came to is kept, and `--resume` goes on from the last checkpoint.
    """

    @abstractmethod
    def on_event(self, event: Event) -> None:
        """See an event; look at its class (`isinstance(event, Stepped)`) for the kind."""

    def view_command(self, run: Path) -> str:
        """Return the command of a program that shows the files it left in a run's folder, for the end of `train`."""
        return ""
