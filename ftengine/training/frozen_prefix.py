"""What frozen blocks below the lowest trained one make of an example, computed once and used in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftengine.api import Batch, FreezesByStep
from ftengine.api.figures import counted
from ftengine.model import seeded
from ftengine.training.memory import available_bytes, held_bytes
from ftengine.training.setup import Setup
from ftengine.training.steps import Steps

FREE_SHARE = 4
"""One part in so many of the memory that is free may hold outputs of frozen blocks."""

CLOSE = 1e-3
"""Relative difference of two losses that rounding explains, in bfloat16 too; a block left out makes far more."""


def frozen_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks below the lowest one that trains, [] where a model has no stack of blocks, or several.

    A stack is an outermost list of modules that are made of modules, such as `model.layers`.
    """
    stacks, inside = list[list[nn.Module]](), set[nn.Module]()
    for part in module.modules():
        blocks = list(part.children()) if isinstance(part, (nn.ModuleList, nn.Sequential)) else []
        if part not in inside and len(blocks) > 1 and all(any(block.children()) for block in blocks):
            stacks.append(blocks)
            inside.update(part.modules())
    if len(stacks) != 1:
        return []
    train = [any(p.requires_grad for p in block.parameters()) for block in stacks[0]]
    return stacks[0][: [*train, True].index(True)]


def frozen_prefix(setup: Setup, steps: Steps) -> FrozenPrefix | None:
    """Return what keeps a run's outputs of frozen blocks; None where nothing would be used again."""
    section, device, train = setup.section, setup.accelerator.device, setup.train
    blocks = frozen_blocks(setup.loaded.module)
    once = steps.total <= steps.per_epoch or train.augmenters or setup.accelerator.num_processes > 1
    moves = isinstance(setup.strategy, FreezesByStep) or section.memory_limit is not None
    if section.reuse_frozen is False or not blocks or once or moves:
        return None
    most = (available_bytes(device) - held_bytes(device)) // FREE_SHARE
    return FrozenPrefix(blocks, int(train.lengths.sum()), setup.task.modality == "text", most, setup.listener.message)


class FrozenPrefix:
    """The output of the uppermost frozen block, kept for each example.

    With the first batch it is tried whether that is possible: the output takes no gradient, is the same when it is
    computed again (no dropout, no noise), and the loss stays what it was when the model is given it. Otherwise every
    batch is computed as ever.

    Args:
        blocks: from `frozen_blocks`, at least one.
        tokens: of all examples together.
        masked: whether batches have an attention mask, which says what is padding; images have none.
        most: bytes that may be kept.
        tell: is told what was found.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], tokens: int, masked: bool, most: int, tell: Callable[[str], None]
    ) -> None:
        self._blocks, self._tokens, self._masked, self._most, self._tell = blocks, tokens, masked, most, tell
        self._kept: dict[int, Tensor] = {}
        self._works: bool | None = None
        self._in_tuple = False

    def batch(self, members: np.ndarray, batch: Batch, loss: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Have the model take for a while what is kept of these examples, else keep it; `loss` is that of the batch."""
        if self._works is None:
            self._works = self._try(len(members), batch, loss)
        if not self._works:
            return nullcontext()
        if all(int(member) in self._kept for member in members):
            return self._given(self._padded(members, batch))
        return self._seen(lambda hidden: self._keep(members, batch, hidden))

    def _try(self, size: int, batch: Batch, loss: Callable[[], Tensor]) -> bool:
        self._loss(loss, 0)  # a task may find something out about the model the first time, by passes of its own
        outputs: list[Tensor] = []
        with self._seen(outputs.append):
            losses = [self._loss(loss, seed) for seed in (0, 1)]
        first, last = outputs[0], outputs[-1]
        mask = batch.get("attention_mask")
        shape = first.shape[:2] if mask is None else mask.shape
        if (
            (mask is None) == self._masked
            or first.requires_grad
            or first.shape != last.shape
            or first.shape[:2] != shape
            or len(first) != size
        ):
            return False
        if not torch.equal(*(torch.cat(self._rows(one, mask)) for one in (first, last))):
            return False
        with self._given(first):
            again = self._loss(loss, 0)
        if not torch.isclose(again, losses[0], rtol=CLOSE, atol=0):
            return False
        what = f"{counted(len(self._blocks), 'block')} below the lowest trained one"
        does = "is" if len(self._blocks) == 1 else "are"
        bytes_each = first[0].nbytes / (1 if mask is None else shape[1])
        needed = f"{int(bytes_each * self._tokens) >> 20:,} MiB"
        if bytes_each * self._tokens > self._most:
            self._tell(f"{what} {does} computed in every epoch: the output for all examples would take {needed}")
            return False
        self._tell(f"{what} {does} computed once an example; the output takes {needed} and is used in later epochs")
        return True

    def _loss(self, loss: Callable[[], Tensor], seed: int) -> Tensor:
        with seeded(seed, next(self._blocks[0].parameters()).device):
            return loss().detach()

    @contextmanager
    def _seen(self, see: Callable[[Tensor], Any]) -> Iterator[None]:
        """Show what the uppermost block returns, as it is: a tensor, or first in a tuple."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)
            see(output[0] if self._in_tuple else output)

        handle = self._blocks[-1].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _given(self, hidden: Tensor) -> Iterator[None]:
        """Have the blocks compute nothing, and the uppermost one return `hidden`.

        They compute as ever where they are asked for another shape, as by a task that packs examples into one row.
        """
        output = (hidden, None, None) if self._in_tuple else hidden

        def instead(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            asked: Tensor = next(iter((*args, *kwargs.values())))
            return output if asked.shape[:2] == hidden.shape[:2] else forward(*args, **kwargs)

        before = [vars(block).get("forward") for block in self._blocks]
        for block in self._blocks:
            vars(block)["forward"] = partial(instead, block.forward)
        try:
            yield
        finally:
            for block, forward in zip(self._blocks, before, strict=True):
                if forward is None:
                    del vars(block)["forward"]
                else:
                    vars(block)["forward"] = forward

    def _keep(self, members: np.ndarray, batch: Batch, hidden: Tensor) -> None:
        mask = batch.get("attention_mask")
        if mask is not None and hidden.shape[:2] != mask.shape:
            return
        for member, row in zip(members, self._rows(hidden, mask), strict=True):
            self._kept[int(member)] = row.clone()

    def _padded(self, members: np.ndarray, batch: Batch) -> Tensor:
        rows, mask = [self._kept[int(member)] for member in members], batch.get("attention_mask")
        if mask is None:
            return torch.stack(rows)
        hidden = rows[0].new_zeros(*mask.shape, *rows[0].shape[1:])
        hidden[mask.bool()] = torch.cat(rows)
        return hidden

    @staticmethod
    def _rows(hidden: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Return what is known of each example, without padding."""
        hidden = hidden.detach()
        return list(hidden) if mask is None else [row[kept.bool()] for row, kept in zip(hidden, mask, strict=True)]
