"""Losses of a whole split, and how sums are kept while they are added up."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ftengine.api import Batch, Task
from ftengine.data.batching import batches_in_step, by_length
from ftengine.data.encoding import EncodedSplit
from ftengine.model import Criterion
from ftengine.parallel.sharding import is_sharded, reshard
from ftengine.plugins.returned import is_scalar, wrong

SAMPLE = 256
"""Training rows at most on which the training loss is measured as the validation loss is."""


@torch.no_grad()
def mean_loss(accelerator: Accelerator, module: nn.Module, split: EncodedSplit, size: int, tokens: int) -> float:
    """Return the plain loss over a split in evaluation mode, not augmented, divided once by its whole weight.

    Args:
        size, tokens: examples and tokens of a batch at most, as in `micro_batches`.
    """
    module.eval()
    totals = zeros(2, accelerator.device)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    order, fill = by_length(split.lengths), is_sharded(module)
    for members, counts in batches_in_step(order, size, rank, ranks, fill=fill, lengths=split.lengths, tokens=tokens):
        batch = to_device(split.batch(members), accelerator.device)
        with accelerator.autocast():
            loss_sum, weight = loss_of(split.task, module, batch, Criterion())
        if counts:
            totals += stacked(accelerator.device, loss_sum, weight)
    reshard(module)
    total, count = (float(x) for x in accelerator.reduce(totals, "sum"))
    return total / count


def loss_of(task: Task, module: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, Tensor | float]:
    """Return a task's (sum of losses, weight) of a batch (PluginError: they are no scalars)."""
    found = task.loss(module, batch, criterion)
    pair = isinstance(found, tuple) and len(found) == 2
    if not (pair and is_scalar(found[0], tensor=True) and is_scalar(found[1])):
        wanted = "(sum of losses, its weight): a tensor of floats without dimensions, and a number or such a tensor"
        raise wrong(task, "loss", found, wanted)
    return found


def zeros(count: int, device: torch.device) -> Tensor:
    """Return sums that nothing was added to yet."""
    return torch.zeros(count, dtype=_widest(device), device=device)


def stacked(device: torch.device, *values: Tensor | float) -> Tensor:
    """Stack numbers on the device, without waiting for it."""
    dtype = _widest(device)
    return torch.stack([torch.as_tensor(x, dtype=dtype, device=device).detach() for x in values])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _widest(device: torch.device) -> torch.dtype:
    """Return the dtype in which losses are added up; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
