"""Where a run computes: Accelerate's device and processes, and the precision there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env

from ftengine.api import LoadedModel
from ftengine.engine.rendezvous import own_store
from ftengine.errors import RecipeError
from ftengine.run.recipe import Recipe
from ftengine.training.precision import Precision, apply_precision, choose_precision

NOT_OFFERED = {
    "ACCELERATE_USE_FSDP": "sharded parameters (FSDP)",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""What a launcher's environment asks for in vain."""


def check_launch(recipe: Recipe) -> None:
    """Refuse what `accelerate launch` or the environment asks for and the recipe would overrule (RecipeError)."""
    asked = [what for variable, what in NOT_OFFERED.items() if parse_flag_from_env(variable)]
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        asked.append(f"torch.compile (dynamo_backend {backend.lower()})")
    if asked:
        raise RecipeError(
            f"the launcher asks for {' and '.join(asked)}, which ftengine does not train with: each process holds the "
            "whole model. Take it out of `accelerate config`, or launch with torchrun."
        )
    accumulate = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulate not in ("1", str(recipe.train.accumulate)):
        raise RecipeError(
            f"the launcher asks for gradient_accumulation_steps {accumulate}, and train.accumulate is "
            f"{recipe.train.accumulate}. The recipe decides: set train.accumulate={accumulate}, or take the other out."
        )


def processes() -> PartialState:
    """Return which of how many processes this is, and its device."""
    # Without being told, Accelerate takes several processes on CPUs for as many single ones.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, **own_store())


@dataclass(frozen=True)
class Device:
    """Accelerate's device and processes, and the precision there."""

    accelerator: Accelerator
    precision: Precision

    @classmethod
    def open(cls, recipe: Recipe) -> Device:
        """Take the device that Accelerate gives (RecipeError: it cannot compute in the recipe's precision)."""
        check_launch(recipe)
        device = processes().device
        precision = choose_precision(recipe.train.precision, recipe.model.dtype, device)
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if asked not in ("no", precision.accelerate_name):
            raise RecipeError(
                f"the launcher asks for mixed_precision {asked}, and train.precision is {recipe.train.precision} "
                f"({precision.name} here). The recipe decides: set train.precision, or leave mixed_precision at no."
            )
        AcceleratorState._reset_state()  # a second run in one process may want another precision
        return cls(Accelerator(mixed_precision=precision.accelerate_name, cpu=device.type == "cpu"), precision)

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
