"""What models answer in evaluation mode, and options that a task does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftengine.api import Batch, LoadedModel, Task
from ftengine.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def evaluated(task: Any, loaded: LoadedModel, batch: Batch) -> Tensor:
    """Return a task's `outputs` for a batch in evaluation mode, on the model's device."""
    import torch

    from ftengine.model import evaluating

    device = next(loaded.module.parameters()).device
    with torch.no_grad(), evaluating(loaded.module):
        return task.raw_outputs(loaded.module, {key: value.to(device) for key, value in batch.items()})


def refuse_options(task: Task, options: Mapping[str, Any] | None) -> None:
    """Refuse options of predictions, of which a task has none. Raises InputError, which names the first."""
    if options:
        raise InputError(f"unknown option {next(iter(options))!r}; task {task.name!r} has none for predictions.")
