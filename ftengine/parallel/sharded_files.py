"""Files of sharded tensors: each process writes its parts, and any number of processes can read them.

The format is the safetensors layout of torch.distributed.checkpoint; its default layout has a pickle, which would run
code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate.state import PartialState
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from ftengine.errors import BaseMismatch, RunError
from ftengine.run.directory import PARTIAL, write_folder


def write_parts(tensors: Mapping[str, Tensor], target: Path, also: Callable[[Path], None] = lambda _: None) -> None:
    """Write the tensors' parts of all processes to a folder, atomically. Every process must call it.

    Args:
        also: writes further files into the folder; called in process 0.

    Raises:
        RunError: a process cannot write a file.
    """

    def fill(folder: Path) -> None:
        _write(tensors, folder)
        also(folder)

    if PartialState().is_main_process:
        write_folder(target, fill)
    else:
        _write(tensors, target.with_name(target.name + PARTIAL))
    PartialState().wait_for_everyone()


def _write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    PartialState().wait_for_everyone()  # process 0 has made the folder
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    try:
        dcp.save(plain, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.CheckpointException as error:
        raise RunError(f"cannot write {str(folder)!r}: {_causes(error)}. Complete files are kept.") from None


@torch.no_grad()
def read_parts(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy tensors from a folder's safetensors files into `targets`; each process reads its own parts.

    Raises:
        BaseMismatch: a tensor is missing, or has another shape.
        RunError: a file cannot be read.
    """
    stored_tensors = _stored(folder)
    for name, target in targets.items():
        stored = stored_tensors.get(name)
        if stored is None or stored[0] != target.shape:
            what = "is missing" if stored is None else f"has shape {tuple(stored[0])}"
            raise BaseMismatch(
                f"{str(folder)!r} does not fit this model: {name!r} {what}, the model expects {tuple(target.shape)}."
            )
    plain = {name: tensor.detach() for name, tensor in targets.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process reads
            dcp.load(plain, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:
        raise RunError(f"{str(folder)!r} cannot be read: {_causes(error)}.") from None


def read_like(folder: Path, names: Iterable[str], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors named "PARAMETER|KEY"; those with the shape of their parameter are sharded like it.

    Raises:
        BaseMismatch, RunError: one is missing, or cannot be read.
    """
    stored_tensors, targets = _stored(folder), dict[str, Tensor]()
    for name in names:
        if name not in stored_tensors:
            raise BaseMismatch(f"{str(folder)!r} does not fit this model: {name!r} is missing.")
        shape, dtype = stored_tensors[name]
        parameter = parameters.get(name.partition("|")[0])
        if isinstance(parameter, DTensor) and parameter.shape == shape:
            targets[name] = torch.zeros_like(parameter.detach(), dtype=dtype)
        else:
            targets[name] = torch.zeros(shape, dtype=dtype)
    read_parts(folder, targets)
    return targets


def _stored(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of the complete tensors in a folder's files."""
    try:
        tensors = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{str(folder)!r} cannot be read: {error}.") from None
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in tensors.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _causes(error: dcp.CheckpointException) -> str:
    return "; ".join(str(failure[0]) for failure in error.failures.values())
