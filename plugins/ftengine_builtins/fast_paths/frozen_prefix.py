"""Outputs of the frozen blocks below the lowest trained one, computed once and reused in every epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ftengine.api import Batch, FastPath, LoadedModel, TrainingContext
from ftengine.model import seeded
from ftengine.text import counted
from ftengine_builtins.strategies.routing import EVERY_TOKEN

FREE_SHARE = 4
"""One part in so many of the memory that is left beside the peak may hold outputs of frozen blocks."""


def frozen_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks below the lowest one that trains; [] if a model has no stack of blocks, or several.

    A stack is an outermost list of modules that contain modules, such as `model.layers`.
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


class FrozenPrefix(FastPath):
    """Outputs of frozen blocks below the lowest trained one, kept for later epochs if results stay the same."""

    name = "frozen-prefix"

    _kept: KeptOutputs | None = None

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        blocks = frozen_blocks(loaded.module) if context.repeats else []
        if not blocks or loaded.module in EVERY_TOKEN:
            yield None
            return
        self._kept = KeptOutputs(blocks, context)
        try:
            yield self._kept.replaced
        finally:
            self._kept = None

    def around_batch(
        self, members: Sequence[int], batch: Batch, loss: Callable[[], Tensor]
    ) -> AbstractContextManager[None]:
        return nullcontext() if self._kept is None else self._kept.around(members, batch, loss)


class _Pass(NamedTuple):
    """The result of a pass: its loss, the uppermost block's output, and whether random numbers were drawn."""

    loss: Tensor
    hidden: Tensor
    drew: bool
    calls: int


class KeptOutputs:
    """The output of the uppermost frozen block for each example, kept with a hash of the model's input.

    The first batch shows whether that is possible: the output must take no gradient, draw no random number (no dropout,
    no noise, no skipped layer), and be the same when computed again; and the loss, in at least float32, must be bitwise
    the same when the model is given the kept output. Otherwise every batch is computed as usual.

    Args:
        blocks: from `frozen_blocks`, at least one.
        context: the training's context.
    """

    def __init__(self, blocks: Sequence[nn.Module], context: TrainingContext) -> None:
        self._blocks, self._context = blocks, context
        self._rows: dict[int, tuple[bytes, Tensor]] = {}
        self._needed = self._bytes_kept = 0
        self._works: bool | None = None
        self._in_tuple = 0
        self.replaced: dict[str, int] = {}

    def around(self, members: Sequence[int], batch: Batch, loss: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Within the block, let the model use kept outputs of these examples, or keep new ones.

        `loss` is that of the batch.
        """
        if self._works is None:
            self._works = self._try(len(members), batch, loss)
            self.replaced.update({"frozen blocks": len(self._blocks)} if self._works else {})
        if not self._works:
            return nullcontext()
        keys = _contents(len(members), batch)
        kept = [self._rows.get(int(member), (b"", torch.empty(0))) for member in members]
        if [key for key, _ in kept] == keys:
            return self._given(_padded([row for _, row in kept], batch))
        return self._seen(lambda hidden: self._keep(members, keys, batch, hidden))

    def _try(self, size: int, batch: Batch, loss: Callable[[], Tensor]) -> bool:
        mask = batch.get("attention_mask")
        try:
            # A task may find something out about the model the first time, by passes of its own.
            _, first, last = (self._pass(loss, seed) for seed in (0, 0, 1))
            shape = first.hidden.shape[:2] if mask is None else mask.shape
            if first.hidden.shape[:2] != shape or shape[0] != size:
                return False
            if first.hidden.requires_grad or first.drew or last.drew:
                return False
            if first.calls > 1 or last.calls > 1:  # for several inputs, as the two sides of a pair
                return False
            rows = _rows(first.hidden, mask)
            if not torch.equal(torch.cat(rows), torch.cat(_rows(last.hidden, mask))):
                return False
            with self._given(_padded(rows, batch)):
                again = self._pass(loss, 0).loss
        except Exception:  # blocks may ask one another for more than their output: then they are computed as ever
            return False
        if first.loss.itemsize < 4 or not torch.equal(again, first.loss):
            return False
        self._needed = int(first.hidden[0].nbytes / (1 if mask is None else shape[1]) * self._context.tokens)
        if self._is_full():
            return False
        self._context.message(
            f"{self._named_blocks} computed once per example; the output ({self._needed >> 20:,} MiB) is cached "
            "for later epochs"
        )
        return True

    @property
    def _named_blocks(self) -> str:
        what = f"{counted(len(self._blocks), 'block')} below the lowest trained one"
        return f"{what} {'is' if len(self._blocks) == 1 else 'are'}"

    def _is_full(self) -> bool:
        """Drop all outputs, with a message, if memory does not suffice for those to come."""
        full = self._needed - self._bytes_kept > self._context.room() // FREE_SHARE
        if full:
            self._works = False
            self._rows.clear()
            self._context.message(
                f"{self._named_blocks} computed in every epoch: the output for all examples would take "
                f"{self._needed >> 20:,} MiB"
            )
        return full

    def _pass(self, loss: Callable[[], Tensor], seed: int) -> _Pass:
        """Raises IndexError if the uppermost block is not called, as some models skip blocks at random."""
        outputs: list[tuple[Tensor, bool]] = []
        device = next(self._blocks[0].parameters()).device
        with seeded(seed, device):
            before = _generators(device)
            with self._seen(lambda hidden: outputs.append((hidden, _generators(device) != before))):
                value = loss().detach()
        return _Pass(value, *outputs[0], len(outputs))

    @contextmanager
    def _seen(self, see: Callable[[Tensor], Any]) -> Iterator[None]:
        """Return the uppermost block's output: a tensor, or the first of a tuple."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            self._in_tuple = len(output) if isinstance(output, tuple) else 0
            see(output[0] if self._in_tuple else output)

        handle = self._blocks[-1].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _given(self, hidden: Tensor) -> Iterator[None]:
        """Skip the blocks' computation; the uppermost one returns `hidden`.

        Calls with another shape compute as usual, such as those of a task that packs examples into one row.
        """
        output = (hidden, *[None] * (self._in_tuple - 1)) if self._in_tuple else hidden

        def instead(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            asked = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
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

    def _keep(self, members: Sequence[int], keys: list[bytes], batch: Batch, hidden: Tensor) -> None:
        mask = batch.get("attention_mask")
        if (mask is not None and hidden.shape[:2] != mask.shape) or self._is_full():
            return
        for member, key, row in zip(members, keys, _rows(hidden, mask), strict=True):
            if int(member) not in self._rows:
                self._bytes_kept += row.nbytes
            self._rows[int(member)] = key, row.clone()


def _generators(device: torch.device) -> list[Any]:
    """Return the states of all random generators that a model may use."""
    numbers: Any = np.random.get_state()
    states = [torch.get_rng_state().numpy().tobytes(), random.getstate(), numbers[1].tobytes(), numbers[2]]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return states


def _contents(size: int, batch: Batch) -> list[bytes]:
    """Return a hash of each example's part of a batch, without padding."""
    mask, hashes = batch.get("attention_mask"), [blake2b(digest_size=16) for _ in range(size)]
    for name, tensor in sorted((name, x) for name, x in batch.items() if isinstance(x, Tensor)):
        masked = mask is not None and tensor.shape[:2] == mask.shape
        rows = _rows(tensor, mask if masked else None)
        for digest, row in zip(hashes, rows, strict=True):
            digest.update(name.encode())
            digest.update(row.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return [digest.digest() for digest in hashes]


def _padded(rows: Sequence[Tensor], batch: Batch) -> Tensor:
    """Return rows in the shape of the uppermost block's output, with zeros as padding."""
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.stack(list(rows))
    hidden = rows[0].new_zeros(*mask.shape, *rows[0].shape[1:])
    hidden[mask.bool()] = torch.cat(list(rows))
    return hidden


def _rows(hidden: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Return each example's rows, without padding."""
    hidden = hidden.detach()
    return list(hidden) if mask is None else [row[kept.bool()] for row, kept in zip(hidden, mask, strict=True)]
