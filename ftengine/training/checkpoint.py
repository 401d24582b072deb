"""Checkpoints: what is trainable, the optimiser and the position, in safetensors and JSON.

Random states need no place here: the loop draws them anew at every step, from (seed, step, process).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.model import copy_into, read_tensors, save_tensors, state_tensors
from ftengine.run.directory import PARTIAL, RunDirectory, follow_umask, remove, write_folder, writing
from ftengine.training.optimizer import optimizer_state, restore_optimizer

BEST = "best.safetensors"
REGULARIZERS = "regularizers.safetensors"


@dataclass
class Progress:
    """Where training stands.

    Args:
        step: optimiser steps done; `step_in_epoch` those of `epoch`, to which the next step belongs.
        best_loss, best_step: of the lowest validation loss so far; None before the first validation.
        level: the validation loss from which early stopping counts, and `bad_validations` since it was reached.
        seconds: training time so far, of all processes that worked on this run.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    level: float | None = None
    bad_validations: int = 0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    run: RunDirectory,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    regularizers: Mapping[str, Tensor],
) -> Path:
    """Write `checkpoints/step-NNNNNN` atomically, with what regularizers need, and drop all but the newest `keep`."""

    def fill(folder: Path) -> None:
        if regularizers:
            save_tensors(regularizers, folder / REGULARIZERS)
        save_tensors(state_tensors(module), folder / "trained.safetensors")
        slots, content = optimizer_state(module, optimizer)
        save_tensors(slots, folder / "optimizer.safetensors")
        RunDirectory(folder).write_json("state.json", {"progress": asdict(progress), "optimizer": content})

    target = write_folder(run.checkpoints / f"step-{progress.step:06d}", fill)
    for old in checkpoint_folders(run)[:-keep]:
        remove(old)
    return target


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]]:
    """Set module and optimiser to a checkpoint's state; return where it stood, and what regularizers had.

    Raises:
        RunError, BaseMismatch: the checkpoint is damaged or belongs to another model.
    """
    state = RunDirectory(folder).read_json("state.json")
    copy_into(state_tensors(module), read_tensors(folder / "trained.safetensors"), str(folder))
    restore_optimizer(module, optimizer, read_tensors(folder / "optimizer.safetensors"), state["optimizer"])
    regularizers = folder / REGULARIZERS
    return Progress(**state["progress"]), read_tensors(regularizers) if regularizers.exists() else {}


def save_best(run: RunDirectory, module: nn.Module) -> None:
    """Write the present weights as the best, atomically."""
    target = run.checkpoints / BEST
    partial = target.with_name(BEST + PARTIAL)
    with writing(target, partial):
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        save_tensors(state_tensors(module), partial)
        follow_umask(partial)
        partial.replace(target)


def load_best(run: RunDirectory, module: nn.Module) -> None:
    """Set the module to the best weights."""
    copy_into(state_tensors(module), read_tensors(run.checkpoints / BEST), BEST)


def checkpoint_folders(run: RunDirectory) -> list[Path]:
    """Return complete checkpoints, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [path for path in run.checkpoints.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
