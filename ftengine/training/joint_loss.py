"""Losses that compare examples, over a whole effective batch with the memory of a micro-batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ftengine.api import Batch
from ftengine.parallel.device import to_device
from ftengine.training.losses import Represented, gathered, joint_loss_of, represented, rows_of
from ftengine.training.modes import draw_randomness, statistics_kept
from ftengine.training.setup import Setup


class JointLoss:
    """The loss of an effective batch that compares examples, in two passes (GradCache: Gao et al. 2021,
    arXiv:2101.06983).

    `compare` represents every micro-batch without a graph, takes the loss over those of all micro-batches and
    processes, and keeps its gradient g with respect to each row r. `share` then represents one micro-batch again, with
    the same random numbers (dropout), and returns Σ r·g, whose gradient is that of the loss. So memory holds the graph
    of one micro-batch, and 1 × 8, 8 × 1 and 2 processes × 4 examples give one gradient.
    """

    def __init__(self, setup: Setup, step: int) -> None:
        self._setup = setup
        self._path = (setup.seed, step, setup.accelerator.process_index)
        self._gradients: list[dict[str, Tensor]] = []
        self._shares: list[float] = []
        self._loss, self._weight = torch.zeros(()), 0.0

    def compare(self, mine: Iterable[tuple[np.ndarray, bool]], epoch: int) -> None:
        """Compute the loss over all micro-batches; `mine` are this process's, as (members, whether it counts)."""
        setup, parts = self._setup, list[tuple[Represented, bool]]()
        device, module = setup.accelerator.device, setup.loaded.module
        with torch.no_grad(), statistics_kept(module), setup.accelerator.autocast():
            for number, (chosen, counts) in enumerate(mine, 1):
                batch = to_device(setup.train.batch(chosen, epoch), device)
                parts.append((self._represent(batch, number), counts))
        representation, first = gathered([part for part, counts in parts if counts], setup.accelerator)
        leaves = [x.requires_grad_() for x in representation.values() if x.is_floating_point()]
        loss, weight = joint_loss_of(setup.task, representation)
        if loss.requires_grad:
            loss.backward(inputs=leaves)
        trained = {name: x for name, x in representation.items() if x.requires_grad}
        gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in trained.items()}
        for part, counts in parts:
            rows = rows_of(part)
            own = slice(first, first + rows if counts else first)
            self._gradients.append({name: x[own] for name, x in gradients.items()})
            self._shares.append(rows / rows_of(representation) if counts else 0.0)
            first = own.stop
        self._loss, self._weight = loss.detach(), float(weight)

    def share(self, batch: Batch, number: int) -> tuple[Tensor, float]:
        """Return a micro-batch's share of the loss, with its gradient of the whole loss, and of the weight."""
        tensors = self._represent(batch, number)
        gradients, share = self._gradients[number - 1], self._shares[number - 1]
        if not share:  # filled in for a sharded model, in which all processes take part; it does not count
            return torch.stack([x.sum() for x in tensors.values() if x.requires_grad]).sum(), 0.0
        total = torch.stack([(tensors[name] * g).sum() for name, g in gradients.items()]).sum()
        return total - total.detach() + self._loss * share, self._weight * share

    def _represent(self, batch: Batch, number: int) -> Represented:
        draw_randomness(*self._path, number)
        return represented(self._setup.task, self._setup.loaded.module, batch)
