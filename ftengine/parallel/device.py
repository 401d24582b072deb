"""Where a run computes: Accelerate's device and processes, and the precision there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env, patch_environment
from torch import Tensor, nn

from ftengine.api import Batch, LoadedModel
from ftengine.errors import RecipeError
from ftengine.parallel.arithmetic import answering
from ftengine.parallel.launch import FSDP, block_classes, check_launch
from ftengine.parallel.precision import Precision, apply_precision, choose_precision
from ftengine.parallel.rendezvous import own_store
from ftengine.parallel.sharding import beside, shard, without_weights
from ftengine.run.recipe import Recipe

PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
"""How many products of different sizes torch and its oneDNN keep the machine code of, half a MiB each. They would keep
1,024, which batches of a new number of tokens each fill within an epoch, and gain no time by it."""


def processes() -> PartialState:
    """Return which of how many processes this is, and its device."""
    # Without being told, Accelerate takes several processes on CPUs for as many single ones.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, **own_store())


@dataclass(frozen=True)
class Device:
    """Accelerate's device and processes, and the precision there.

    `divides` says whether the model that trains is divided over the processes; whole models stay on the CPU then.
    """

    accelerator: Accelerator
    precision: Precision
    divides: bool = False

    @classmethod
    def open(cls, recipe: Recipe, *, training: bool = False) -> Device:
        """Take the device that Accelerate gives (RecipeError: it cannot compute as recipe or launcher ask)."""
        check_launch(recipe)
        for name in PRIMITIVES:
            os.environ.setdefault(name, "128")
        if parse_flag_from_env(FSDP) and not training:
            raise RecipeError(
                "the launcher asks for sharded parameters (FSDP), and only `ftengine train` shards them. Launch this "
                "command with torchrun, or alone."
            )
        device = processes().device
        precision = choose_precision(recipe.train.precision, recipe.model.dtype, device)
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if asked not in ("no", precision.accelerate_name):
            raise RecipeError(
                f"the launcher asks for mixed_precision {asked}, and train.precision is {recipe.train.precision} "
                f"({precision.name} here). The recipe decides: set train.precision, or leave mixed_precision at no."
            )
        AcceleratorState._reset_state()  # a second run in one process may want another precision
        with patch_environment(**{FSDP: "false"}):  # Accelerate need not divide anything
            accelerator = Accelerator(mixed_precision=precision.accelerate_name, cpu=device.type == "cpu")
        divides = training and recipe.train.parallel == "fsdp" and accelerator.num_processes > 1
        if divides and precision.compute is torch.float16:
            raise RecipeError("train.parallel fsdp and float16 do not go together. Set train.precision to bfloat16.")
        return cls(accelerator, precision, divides)

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
        self.move(loaded)

    def move(self, loaded: LoadedModel) -> None:
        """Give a model its device; what will be divided stays on the CPU, or on the meta device."""
        if not self.divides:
            loaded.module.to(self.accelerator.device)

    @property
    def whole(self) -> torch.device:
        """Where a model is that is not divided."""
        return torch.device("cpu") if self.divides else self.accelerator.device

    def divide(self, loaded: LoadedModel) -> nn.Module:
        """Divide a model over the processes; return it without weights, for `gathered`."""
        empty = without_weights(loaded.module)
        shard(loaded.module, self.accelerator.device, block_classes())
        return empty

    @contextmanager
    def measuring(self, loaded: LoadedModel) -> Iterator[None]:
        """Have a model answer where this device computes, divided for that long where it would train divided."""
        whole = loaded.module
        if self.divides:
            loaded.module = beside(whole)
            shard(loaded.module, self.accelerator.device, block_classes())
        try:
            yield
        finally:
            loaded.module = whole

    @contextmanager
    def inference(self, loaded: LoadedModel) -> Iterator[None]:
        """Run a model for its answers: no dropout, no gradients, the run's precision."""
        compute = self.precision.compute
        cast = torch.autocast(self.whole.type, compute, enabled=compute is not torch.float32)
        with answering(loaded.module), cast if self.divides else self.accelerator.autocast():
            yield


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    moved = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
    return {**batch, **moved} | ({"reference": to_device(batch["reference"], device)} if "reference" in batch else {})
