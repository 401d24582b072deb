"""Callbacks: methods that are called while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import Component

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Event:
    """An event of a run in the folder `run`, after `step` optimiser steps."""

    moment: ClassVar[str]
    """The method of a callback that takes it."""
    run: Path
    step: int


@dataclass(frozen=True)
class Started(Event):
    """Training begins, or goes on after `step` steps where a run is resumed; `recipe` is resolved."""

    moment = "on_train_begin"
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class BeforeStep(Event):
    """The gradients of a step are ready: added up over the effective batch, divided by its weight, and clipped.

    The parameters of `model` hold them in `grad` until regularizers were called; None for parameters outside this step.

    Args:
        step: the step that is taken next, as metrics.jsonl will count it.
        norm: norm of all gradients before clipping to `train.max_grad_norm`.
    """

    moment = "on_pre_optimizer_step"
    model: nn.Module
    norm: float


@dataclass(frozen=True)
class Stepped(Event):
    """An optimiser step is done; `figures` is its line of metrics.jsonl."""

    moment = "on_step_end"
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Validated(Event):
    """The model was validated; `figures` is the line of metrics.jsonl.

    Args:
        losses: (n,) float64 on the CPU, the summed loss of each validation example, in the order of the split; None
            where a loss belongs to no single example (examples are compared with each other, or are drawn).
    """

    moment = "on_evaluate"
    figures: Mapping[str, Any]
    losses: Tensor | None = None


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint, or the trained part at the end, was written to `folder`."""

    moment = "on_save"
    folder: Path


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete, with verdict and report; `evaluation` is what evaluation.json holds."""

    moment = "on_run_end"
    evaluation: Mapping[str, Any]


@dataclass(frozen=True)
class Failed(Event):
    """Training ended with an error, which is raised after all callbacks were called."""

    moment = "on_exception"
    error: BaseException


class Callback(Component):
    """Follows a run in the main process; named under `callbacks` in a recipe.

    A subclass writes the methods that it needs. A callback that raises is named in a message and not called again, and
    the run goes on. To end the run, raise `ftengine.errors.TrainingError`: the training so far is kept, and `--resume`
    continues from the last checkpoint.
    """

    def on_train_begin(self, event: Started) -> None:
        """Training begins, or goes on after `event.step` steps where a run is resumed."""

    def on_pre_optimizer_step(self, event: BeforeStep) -> None:
        """The gradients of a step are ready, and clipped; `event.model` has them."""

    def on_step_end(self, event: Stepped) -> None:
        """An optimiser step is done; `event.figures` is its line of metrics.jsonl."""

    def on_evaluate(self, event: Validated) -> None:
        """The model was validated; `event.figures` is the line of metrics.jsonl."""

    def on_save(self, event: Saved) -> None:
        """A checkpoint, or the trained part at the end, was written to `event.folder`."""

    def on_run_end(self, event: Finished) -> None:
        """The tuned model is measured, and verdict and report are written; `event.evaluation` has the figures."""

    def on_exception(self, event: Failed) -> None:
        """The run ends with `event.error`, during or after training; it is raised once all callbacks were called."""

    def view_command(self, run: Path) -> str:
        """Return a command that shows the callback's files in a run's folder; printed at the end of `train`."""
        return ""
