"""The device, processes (by Accelerate) and precision of a run."""

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
"""Variables that limit the cached kernels of torch and oneDNN, half a MiB for each size of a product. Their default of
1,024 is filled within an epoch by batches of different lengths, and saves no time."""


def processes() -> PartialState:
    """Return the rank of this process, the number of processes, and the device."""
    # Without `cpu`, Accelerate treats several processes on CPUs as single ones.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, **own_store())


@dataclass(frozen=True)
class Device:
    """The device and processes of Accelerate, and the precision.

    `divides` is whether the trained model is sharded over the processes; unsharded models then stay on the CPU.
    """

    accelerator: Accelerator
    precision: Precision
    divides: bool = False

    @classmethod
    def open(cls, recipe: Recipe, *, training: bool = False) -> Device:
        """Open the device of Accelerate (RecipeError: it does not support what recipe or launcher ask for)."""
        check_launch(recipe)
        for name in PRIMITIVES:
            os.environ.setdefault(name, "128")
        if parse_flag_from_env(FSDP) and not training:
            raise RecipeError(
                "the launcher asks for sharded parameters (FSDP), but only `ftengine train` supports them. Launch this "
                "command with torchrun, or without a launcher."
            )
        device = processes().device
        precision = choose_precision(recipe.train.precision, recipe.model.dtype, device)
        requested = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if requested not in ("no", precision.accelerate_name):
            raise RecipeError(
                f"the launcher asks for mixed_precision {requested}, and train.precision is {recipe.train.precision} "
                f"({precision.name} here). The recipe decides: set train.precision, or leave mixed_precision at no."
            )
        AcceleratorState._reset_state()  # a second run in one process may want another precision
        with patch_environment(**{FSDP: "false"}):  # ftengine shards, not Accelerate
            accelerator = Accelerator(mixed_precision=precision.accelerate_name, cpu=device.type == "cpu")
        divides = training and recipe.train.parallel == "fsdp" and accelerator.num_processes > 1
        if divides and precision.compute is torch.float16:
            raise RecipeError("train.parallel fsdp does not support float16. Set train.precision to bfloat16.")
        return cls(accelerator, precision, divides)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    def wait(self) -> None:
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()

    def place(self, loaded: LoadedModel) -> None:
        """Set a model's dtypes and device; parameters with requires_grad stay in float32."""
        apply_precision(loaded.module, self.precision)
        self.move(loaded)

    def move(self, loaded: LoadedModel) -> None:
        """Move a model to the device; a model that will be sharded stays on the CPU or the meta device."""
        if not self.divides:
            loaded.module.to(self.accelerator.device)

    @property
    def unsharded_device(self) -> torch.device:
        """The device of models that are not sharded."""
        return torch.device("cpu") if self.divides else self.accelerator.device

    def divide(self, loaded: LoadedModel) -> nn.Module:
        """Shard a model over the processes; return a copy without weights, for `gathered`."""
        empty = without_weights(loaded.module)
        shard(loaded.module, self.accelerator.device, block_classes())
        return empty

    @contextmanager
    def measuring(self, loaded: LoadedModel) -> Iterator[None]:
        """Put a model on the device for measurements; it is sharded during the block if training shards it."""
        undivided = loaded.module
        if self.divides:
            loaded.module = beside(undivided)
            shard(loaded.module, self.accelerator.device, block_classes())
        try:
            yield
        finally:
            loaded.module = undivided

    @contextmanager
    def inference(self, loaded: LoadedModel) -> Iterator[None]:
        """Run a model for inference: no dropout, no gradients, the run's precision."""
        compute = self.precision.compute
        cast = torch.autocast(self.unsharded_device.type, compute, enabled=compute is not torch.float32)
        with answering(loaded.module), cast if self.divides else self.accelerator.autocast():
            yield


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    moved = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
    return {**batch, **moved} | ({"reference": to_device(batch["reference"], device)} if "reference" in batch else {})
