"""One trial: it trains to a rung, keeps the losses of validation examples, and goes on from there later."""

from __future__ import annotations

import gc
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ftengine import Recipe, Shared, fine_tune
from ftengine.api import Callback, Saved, SilentListener, Validated
from ftengine.errors import InputError, TrainingError


class NoLosses(InputError):
    """A task without losses of single examples."""


@dataclass(frozen=True)
class Validations:
    """What the validations of a trial measured.

    Args:
        steps: (V,) the steps after which it was validated.
        means: (V,) the validation loss.
        losses: (V, n) the summed loss of each example.
    """

    steps: np.ndarray
    means: np.ndarray
    losses: np.ndarray

    @classmethod
    def read(cls, file: Path) -> Validations:
        """Read a trial's validations; those of a trial that has none yet are empty."""
        if not file.is_file():
            return cls(np.zeros(0, dtype=int), np.zeros(0), np.zeros((0, 0)))
        with np.load(file) as arrays:
            return cls(arrays["steps"], arrays["means"], arrays["losses"])

    def write(self, file: Path) -> None:
        """Write the file atomically."""
        content = io.BytesIO()
        np.savez_compressed(content, steps=self.steps, means=self.means, losses=self.losses)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial")
        partial.write_bytes(content.getvalue())
        partial.replace(file)

    def with_one(self, step: int, mean: float, losses: np.ndarray) -> Validations:
        """Return these with one more, in the place of those from its step on."""
        before = self.steps < step
        earlier = self.losses[before] if len(self.steps) else np.zeros((0, len(losses)))
        return Validations(
            np.append(self.steps[before], step), np.append(self.means[before], mean), np.vstack([earlier, losses])
        )

    def kept(self, until: int, keep_best: bool) -> tuple[float, np.ndarray]:
        """Return the loss, and that of each example (n,), of the weights that a run kept if it ended at a step."""
        upto = int(np.searchsorted(self.steps, until, side="right"))
        index = int(self.means[:upto].argmin()) if keep_best else upto - 1
        return float(self.means[index]), self.losses[index]


class Rung(Callback):
    """Keeps the losses of a trial's validations, and ends the run at the checkpoint of a rung.

    Args:
        file: where the validations are kept.
        until: the step of the rung; None: the run goes on to its end.
    """

    name = "rung"

    def __init__(self, file: Path, until: int | None) -> None:
        super().__init__()
        self.file, self.until = file, until
        self.reached = self.without_losses = False

    def on_evaluate(self, event: Validated) -> None:
        """Keep the losses."""
        if event.losses is None:
            self.without_losses = True
            raise TrainingError("the task gives no loss of single examples.")
        measured = Validations.read(self.file)
        measured.with_one(event.step, event.figures["validation_loss"], event.losses.numpy()).write(self.file)

    def on_save(self, event: Saved) -> None:
        """End the run at the checkpoint of the rung."""
        if self.until is not None and event.step >= self.until:
            self.reached = True
            raise TrainingError("the rung is reached.")


def train_to(recipe: Recipe, file: Path, until: int | None, shared: Shared) -> bool:
    """Train a trial to a rung, from where it is; return whether the run came to its end.

    Args:
        recipe: the trial's.
        file: of its validations.
        until: the step of the rung; None: to the end, after which the run is measured.
        shared: of all trials in this process.

    Raises:
        FtengineError: the trial fails.
        NoLosses: its task gives no losses of single examples.
    """
    rung = Rung(file, until)
    try:
        fine_tune(recipe, resume=True, listener=SilentListener(), shared=shared, callbacks=[rung])
        return True
    except TrainingError:
        if rung.without_losses:
            raise NoLosses(
                f"ftengine tune compares trials by the loss of each validation example, and task "
                f"{recipe.task['name']!r} gives none: its loss compares examples, or is not a sum over them. Train "
                "the recipes one by one, and compare the runs with `ftengine report`."
            ) from None
        if not rung.reached:
            raise
        return False
    finally:
        gc.collect()  # what a trial leaves on the device is not the next one's
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
