"""Checkpoints: the trainable tensors, the optimiser and the progress, in safetensors and JSON.

Random states are not saved: the loop seeds them at every step with (seed, step, process).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from safetensors import safe_open
from torch import Tensor, nn

from ftengine.api import Listener
from ftengine.errors import RunError
from ftengine.identity import file_hash, json_hash
from ftengine.identity.base import tensor_hashes
from ftengine.model import copy_into, read_tensors, save_tensors, state_tensors
from ftengine.parallel.sharded_files import read_like, read_parts, write_parts
from ftengine.parallel.sharding import is_sharded
from ftengine.run.directory import PARTIAL, RunDirectory, flush, follow_umask, remove, write_folder, writing
from ftengine.training.optimizer import optimizer_state, restore_optimizer, tensor_names

TRAINED, OPTIMIZER = "trained.safetensors", "optimizer.safetensors"
BEST = "best.safetensors"
BEST_PARTS = "best"
"""The folder of the weights of a sharded model."""
HASHES = "hashes"
"""Key of that file's header, since no second file could be written in the same instant."""
STATE = "state.json"
REGULARIZERS = "regularizers.safetensors"


@dataclass
class Progress:
    """The position of training.

    Args:
        step: optimiser steps done; `step_in_epoch` those of `epoch`, to which the next step belongs.
        best_loss, best_step: the lowest validation loss so far (of an on-policy task minus the highest mean reward)
            and its step; None before the first validation.
        level: the validation loss that early stopping compares with; `bad_validations` is the number since then.
        seconds: training time so far, including that before resumes.
        idle_steps, unscored_steps: steps in a row, the last one included, whose drawn answers taught nothing, or had
            no score at all.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    level: float | None = None
    bad_validations: int = 0
    seconds: float = 0.0
    idle_steps: int = 0
    unscored_steps: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    run: RunDirectory,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    regularizers: Mapping[str, Tensor],
) -> Path:
    """Write `checkpoints/step-NNNNNN` atomically, with the state of regularizers; remove all but the newest `keep`.

    With a sharded model, every process calls it and writes its shards.
    """
    target = run.checkpoints / f"step-{progress.step:06d}"
    trained = state_tensors(module)
    slots, content = optimizer_state(module, optimizer)

    def facts(folder: Path) -> None:
        if regularizers:
            save_tensors(regularizers, folder / REGULARIZERS)
        _write_state(folder, {"progress": asdict(progress), "optimizer": content})

    def fill(folder: Path) -> None:
        save_tensors(trained, folder / TRAINED)
        save_tensors(slots, folder / OPTIMIZER)
        facts(folder)

    if is_sharded(module):
        write_parts({**trained, **slots}, target, facts)
    else:
        write_folder(target, fill)
    if PartialState().is_main_process:
        drop_checkpoints(run, target, keep)
    return target


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state with its hash and the hashes of the files in the folder."""
    hashes = {file.name: file_hash(file) for file in folder.iterdir()}
    RunDirectory(folder).write_json(STATE, {**state, "sha256": {**hashes, STATE: json_hash(state)}})


def drop_checkpoints(run: RunDirectory, newest: Path, keep: int) -> None:
    """Remove older checkpoints than `newest`, except the newest `keep` in all (RunError: one cannot be removed)."""
    folders = checkpoint_folders(run)
    for old in folders[: folders.index(newest) + 1][:-keep]:
        with writing(old):
            # Renamed first, so that a kill does not leave a partial checkpoint under a valid name.
            remove(old.rename(old.with_name(old.name + PARTIAL)))


def newest_checkpoint(run: RunDirectory, listener: Listener) -> Path | None:
    """Return the newest checkpoint with intact files; None if there is no checkpoint.

    Args:
        listener: gets a message about each newer one that is damaged.

    Raises:
        RunError: all checkpoints are damaged.
    """
    folders = checkpoint_folders(run)
    for folder in reversed(folders):
        try:
            _verify(folder)
        except RunError as error:
            listener.message(f"checkpoint {folder.name} is damaged and ignored: {error}")
        else:
            return folder
    if folders:
        raise RunError(
            f"every checkpoint of run {str(run.path)!r} is damaged. Restore one from a copy, or start a new run with "
            "--set output=DIR."
        )
    return None


def _verify(folder: Path) -> None:
    """Compare a checkpoint's files with their recorded hashes (RunError: a file is damaged or missing)."""
    state = RunDirectory(folder).read_json(STATE)
    if not (isinstance(state, dict) and isinstance(hashes := state.pop("sha256", None), dict)):
        raise RunError(f"{str(folder / STATE)!r} is incomplete.")
    if hashes.pop(STATE, None) != json_hash(state):
        raise RunError(f"{str(folder / STATE)!r} does not match the hash that it was saved with.")
    for name, hashed in hashes.items():
        if not (folder / name).is_file():
            raise RunError(f"{str(folder / name)!r} is missing.")
        if file_hash(folder / name) != hashed:
            raise RunError(f"{str(folder / name)!r} does not match the hash that it was saved with.")


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]]:
    """Restore module and optimiser from a checkpoint; return its progress and the state of regularizers.

    Raises:
        RunError, BaseMismatch: the checkpoint is damaged or belongs to another model.
    """
    state = RunDirectory(folder).read_json(STATE)
    trained = state_tensors(module)
    if is_sharded(module) or not (folder / TRAINED).exists():
        read_parts(folder, trained)
        slots = read_like(folder, tensor_names(state["optimizer"]), trained)
    else:
        copy_into(trained, read_tensors(folder / TRAINED), str(folder))
        slots = read_tensors(folder / OPTIMIZER)
    restore_optimizer(module, optimizer, slots, state["optimizer"])
    regularizers = folder / REGULARIZERS
    return Progress(**state["progress"]), read_tensors(regularizers) if regularizers.exists() else {}


def save_best(run: RunDirectory, module: nn.Module) -> None:
    """Write the current weights as the best, atomically; with a sharded model, every process calls it."""
    parts, target = run.checkpoints / BEST_PARTS, run.checkpoints / BEST
    tensors = state_tensors(module)
    if is_sharded(module):
        write_parts(tensors, parts, lambda folder: _write_state(folder, {}))
        return
    partial = target.with_name(BEST + PARTIAL)  # a folder: safetensors writes beside its file, under another name
    with writing(target, partial):
        remove(partial)
        partial.mkdir(parents=True)
        save_tensors(tensors, partial / BEST, {HASHES: json.dumps(tensor_hashes(tensors))})
        follow_umask(partial)
        flush(partial)
        (partial / BEST).replace(target)
        remove(partial)
        remove(parts)  # a resumed run may have fewer processes


def load_best(run: RunDirectory, module: nn.Module) -> None:
    """Load the best weights into the module (RunError: they are missing or damaged)."""
    if (parts := run.checkpoints / BEST_PARTS).is_dir():
        _verify(parts)
        read_parts(parts, state_tensors(module))
        return
    file = run.checkpoints / BEST
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as opened:
        hashes = (opened.metadata() or {}).get(HASHES)
    if hashes is None or json.loads(hashes) != tensor_hashes(tensors):
        raise RunError(
            f"{str(file)!r} does not match the hashes that it was saved with. Restore it from a copy, or start a new "
            "run with --set output=DIR."
        )
    copy_into(state_tensors(module), tensors, BEST)


def checkpoint_folders(run: RunDirectory) -> list[Path]:
    """Return complete checkpoints, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    folders = [path for path in run.checkpoints.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))
