"""All-reduce of gradients over processes, in buckets, during the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ftengine.errors import TrainingError

BUCKET_BYTES = 25 * 2**20
"""Bytes of one all-reduce: large enough to hide latency, small enough that the first one starts early."""


class Reduction:
    """Adds up the gradients of one step over all processes.

    A bucket is sent as soon as its gradients exist, in the same order in all processes, whatever part of the model each
    one used; a missing gradient counts as zeros. DistributedDataParallel and `replicate` need a call of the module's
    forward in every process, and average. Here a task may call parts of the model, some of them twice, a process may
    have no examples left, and the sum is divided once, by the weight of the batch.

    Args:
        parameters: the parameters that train in this step, the same in every process; empty for a single process.
        size: bytes of a bucket, which has one dtype and device; a larger parameter has its own bucket.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], size: int = BUCKET_BYTES) -> None:
        self._buckets = buckets_of(parameters, size)
        self._missing = [set(bucket) for bucket in self._buckets]
        self._place = {parameter: place for place, bucket in enumerate(self._buckets) for parameter in bucket}
        self._sent: list[dist.Work] = []

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Send buckets during the backward pass in the block, which must be the last one of the step.

        Raises:
            TrainingError: a parameter gets another gradient after its bucket was sent.
        """
        hooks = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in self._place]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def send(self) -> None:
        """Send the remaining buckets; every process must call it, even without a backward pass."""
        while len(self._sent) < len(self._buckets):
            self._send_next()

    def wait(self) -> None:
        """Wait until each gradient is the sum over all processes."""
        for work in self._sent:
            work.wait()

    def _arrived(self, parameter: nn.Parameter) -> None:
        if self._place[parameter] < len(self._sent):
            raise TrainingError(
                "a parameter got its gradient in two parts of one backward pass, as with reentrant checkpointing of "
                "layers that share weights. Use checkpointing with use_reentrant=False, or one process."
            )
        self._missing[self._place[parameter]].discard(parameter)
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send_next()

    @torch.no_grad()
    def _send_next(self) -> None:
        bucket = self._buckets[len(self._sent)]
        flat = torch.cat([_flat(parameter) for parameter in bucket])
        for parameter, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = piece.view(parameter.shape)  # replaces its own gradient, which is freed
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append(work)


def buckets_of(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Fill buckets from the last parameter, whose gradient comes first; a bucket has one dtype and device."""
    buckets: list[list[nn.Parameter]] = []
    filling: dict[tuple[torch.dtype, torch.device], tuple[list[nn.Parameter], int]] = {}
    for parameter in reversed(parameters):
        kind, own = (parameter.dtype, parameter.device), parameter.numel() * parameter.element_size()
        bucket, filled = filling.get(kind, ([], 0))
        if not bucket or filled + own > size:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(parameter)
        filling[kind] = bucket, filled + own
    return buckets


def _flat(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
