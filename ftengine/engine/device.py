"""Where a run computes: Accelerate's device and processes, and the precision there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env

from ftengine.api import LoadedModel
from ftengine.run.recipe import Recipe
from ftengine.training.precision import Precision, apply_precision, choose_precision


@dataclass(frozen=True)
class Device:
    """Accelerate's device and processes, and the precision there."""

    accelerator: Accelerator
    precision: Precision

    @classmethod
    def open(cls, recipe: Recipe) -> Device:
        """Take the device that Accelerate gives (RecipeError: it cannot compute in the recipe's precision)."""
        # Without being told, Accelerate takes several processes on CPUs for as many single ones.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        precision = choose_precision(recipe.train.precision, recipe.model.dtype, PartialState(cpu=cpu).device)
        AcceleratorState._reset_state()  # a second run in one process may want another precision
        return cls(Accelerator(mixed_precision=precision.accelerate_name, cpu=cpu), precision)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    def wait(self) -> None:
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()

    def place(self, loaded: LoadedModel) -> None:
        """Give a model its dtypes and its device; requires_grad says what is kept in float32."""
        apply_precision(loaded.module, self.precision)
        loaded.module.to(self.accelerator.device)

    @contextmanager
    def inference(self, loaded: LoadedModel) -> Iterator[None]:
        """Run a model for its answers: no dropout, no gradients, the run's precision."""
        loaded.module.eval()
        with torch.no_grad(), self.accelerator.autocast():
            yield
