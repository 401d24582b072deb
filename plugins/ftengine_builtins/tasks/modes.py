"""Outputs in evaluation mode, and refusal of unknown options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftengine.api import Batch, Features, LoadedModel, Task
from ftengine.errors import InputError
from ftengine.model.tokens import stack_tokens

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = 64
"""Texts that a model reads at a time, where a call may ask for any number of them."""


def evaluated(task: Any, loaded: LoadedModel, batch: Batch) -> Tensor:
    """Return a task's `outputs` for a batch in evaluation mode, on the model's device."""
    import torch

    from ftengine.model import evaluating

    device = next(loaded.module.parameters()).device
    with torch.no_grad(), evaluating(loaded.module):
        return task.raw_outputs(loaded.module, {key: value.to(device) for key, value in batch.items()})


def evaluated_in_blocks(task: Any, loaded: LoadedModel, encoded: Sequence[Features]) -> Tensor:
    """Return `evaluated` of one or more inputs from `tokenize`, (inputs, …) in their order.

    `TOGETHER` inputs are read at a time, the longest first, so that padding and memory are bounded.
    """
    import torch

    order = sorted(range(len(encoded)), key=lambda i: -encoded[i].length)
    blocks = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    stacked = (stack_tokens([encoded[i].inputs for i in block], loaded.processor) for block in blocks)
    outputs = torch.cat([evaluated(task, loaded, batch) for batch in stacked])
    return outputs[torch.tensor(order, device=outputs.device).argsort()]


def refuse_options(task: Task, options: Mapping[str, Any] | None) -> None:
    """Refuse options of predictions for a task that has none (InputError, which names the first)."""
    if options:
        raise InputError(f"unknown option {next(iter(options))!r}; task {task.name!r} has none for predictions.")
