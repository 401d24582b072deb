"""Losses of a whole split, and exact sums of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ftengine.api import Batch, InBatchTask, Task
from ftengine.api.task_sorts import compares_examples
from ftengine.data.batching import batches_in_step, by_length
from ftengine.data.encoding import EncodedSplit
from ftengine.equivalence import SUMMED
from ftengine.model import Criterion
from ftengine.parallel.device import to_device
from ftengine.parallel.sharding import is_sharded, reshard
from ftengine.plugins.attribution import contract_error, is_scalar
from ftengine.training.source_losses import NotedCriterion, SourceLosses, losses_of_examples

SAMPLE = 256
"""Most training rows on which the training loss is measured in the same way as the validation loss."""


@torch.no_grad()
def mean_losses(
    accelerator: Accelerator, module: nn.Module, split: EncodedSplit, size: int, tokens: int, together: int
) -> tuple[dict[str, float], Tensor | None]:
    """Return the loss over a split in evaluation mode, without augmentation, divided once by its whole weight.

    Its key is ""; if there are several sources, the loss of each has the key "/" + name. Beside it stand the summed
    losses of single examples (n,), as in `Validated`.

    Args:
        size, tokens: most examples and tokens of a batch, as in `micro_batches`.
        together: number of examples that are compared with each other, if the task's loss does that.
    """
    module.eval()
    by_source = SourceLosses(split)
    totals = zeros(2 + len(by_source.names), accelerator.device)
    examples = zeros(len(split), accelerator.device)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    order, fill, meet = by_length(split.lengths), is_sharded(module), compares_examples(split.task)
    for start in range(0, len(order), together if meet else len(order)):
        group, parts = order[start : start + together] if meet else order, list[Represented]()
        for members, counts in batches_in_step(
            group, size, rank, ranks, fill=fill, lengths=split.lengths, tokens=tokens
        ):
            batch = to_device(split.batch(members), accelerator.device)
            with accelerator.autocast():
                if meet:
                    parts += [represented(split.task, module, batch)] if counts else []
                    continue
                criterion = NotedCriterion(Criterion())
                loss_sum, weight = loss_of(split.task, module, batch, criterion)
            if counts:
                totals += stacked(accelerator.device, loss_sum, weight, *by_source.sums(members, criterion))
                examples[members] = losses_of_examples(criterion, split.weights[members]).to(examples)
        representation = gathered(parts, accelerator)[0] if meet else {}
        if meet and accelerator.is_main_process:  # each process has all examples
            totals += stacked(accelerator.device, *joint_loss_of(split.task, representation))
    reshard(module)
    total, count, *sums = accelerator.reduce(totals, "sum").tolist()
    means = {"": total / count if count else 0.0} | by_source.means(np.arange(len(split)), sums, total, "/")
    examples = accelerator.reduce(examples, "sum").double().cpu()
    known = not meet and abs(float(examples.sum()) - total) <= SUMMED * abs(total)
    return means, examples if known else None


Represented = Mapping[str, Tensor]
"""The tensors by name that a task's loss needs to compare examples."""


def represented(task: Task, module: nn.Module, batch: Batch) -> Represented:
    """Return a task's representation of a batch (PluginError: it is no mapping of tensors)."""
    assert isinstance(task, InBatchTask)
    tensors = task.represent(module, batch)
    if not isinstance(tensors, Mapping) or not all(isinstance(x, Tensor) and x.ndim for x in tensors.values()):
        raise contract_error(task, "represent", tensors, "a mapping of tensors by name, a row an example")
    return tensors


def joint_loss_of(task: Task, representation: Represented) -> tuple[Tensor, Tensor | float]:
    """Return a task's (sum of losses, weight) of compared examples (PluginError: they are no scalars)."""
    assert isinstance(task, InBatchTask)
    return loss_and_weight(task, "joint_loss", task.joint_loss(representation))


def rows_of(representation: Represented) -> int:
    """Return the number of examples of a representation."""
    return len(next(iter(representation.values())))


def gathered(parts: Sequence[Represented], accelerator: Accelerator) -> tuple[dict[str, Tensor], int]:
    """Concatenate the representations of all micro-batches of all processes, without gradient.

    Each process gets all rows, and the number of the row at which its own begin.
    """
    rank = accelerator.process_index
    every = gather_object([(rank, {name: x.detach().cpu() for name, x in part.items()}) for part in parts])
    joined = {name: torch.cat([part[name] for _, part in every]).to(accelerator.device) for name in every[0][1]}
    return joined, sum(rows_of(part) for of, part in every if of < rank)


def loss_of(task: Task, module: nn.Module, batch: Batch, criterion: Criterion) -> tuple[Tensor, Tensor | float]:
    """Return a task's (sum of losses, weight) of a batch (PluginError: they are no scalars)."""
    return loss_and_weight(task, "loss", task.loss(module, batch, criterion))


def loss_and_weight(task: Task, method: str, result: Any) -> tuple[Tensor, Tensor | float]:
    """Return a task's result as (sum of losses, weight) (PluginError: they are no scalars)."""
    pair = isinstance(result, tuple) and len(result) == 2
    if not (pair and is_scalar(result[0], tensor=True) and is_scalar(result[1])):
        expected = "(sum of losses, its weight): a tensor of floats without dimensions, and a number or such a tensor"
        raise contract_error(task, method, result, expected)
    return result


def zeros(count: int, device: torch.device) -> Tensor:
    """Return sums that start at 0."""
    return torch.zeros(count, dtype=_widest(device), device=device)


def stacked(device: torch.device, *values: Tensor | float) -> Tensor:
    """Stack numbers on the device without synchronising with it."""
    dtype = _widest(device)
    return torch.stack([torch.as_tensor(x, dtype=dtype, device=device).detach() for x in values])


def _widest(device: torch.device) -> torch.dtype:
    """Return the dtype in which losses are added up; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
