"""What tests of whole runs share: curves, listeners, and runs that lose their process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftengine import Recipe, Run, fine_tune
from ftengine.api import SilentListener
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory


def curve(path: str | Path) -> list[dict[str, Any]]:
    """Return what a run wrote at each step, without the time that it took."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunDirectory(path).metrics()]


def losses(run: Run) -> list[float]:
    """Return the training loss of each step."""
    return [line["loss"] for line in run.metrics if "loss" in line]


class Heard(SilentListener):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


class Interruption(BaseException):
    """A lost machine; no code of a run may take it for a failure of its own."""


class Interrupting(SilentListener):
    """Stops a run after some training steps, before the next one is validated or saved."""

    def __init__(self, steps: int) -> None:
        self.left, self.training = steps, False

    def phase(self, name: str, total: int | None = None) -> None:
        self.training = name == "train"

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self.training and figures:
            self.left -= 1
            if self.left < 0:
                raise Interruption


def interrupt(recipe: Recipe, *, after: int, resume: bool = False, registry: Registry | None = None) -> None:
    """Train until some steps are done, then stop for good."""
    with pytest.raises(Interruption):
        fine_tune(recipe, resume=resume, listener=Interrupting(after), registry=registry)
    assert RunDirectory(recipe.output).is_run()
    assert not RunDirectory(recipe.output).finished
