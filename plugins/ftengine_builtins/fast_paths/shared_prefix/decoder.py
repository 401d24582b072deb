"""Token-by-token generation over cached keys and values.

The keys and values of all tokens of a layer are in one pool, and a sequence is the list of its tokens' places in the
pool. So sequences share common prefixes, and nothing is copied, moved or padded as they grow (paged attention with
pages of one token: Kwon et al. 2023, arXiv:2309.06180). The model computes the new tokens of all sequences as one row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftengine_builtins.fast_paths.shared_prefix.attention import Pieces, by_kernel, by_torch, compiled
from ftengine_builtins.fast_paths.shared_prefix.tree import Path, pieces_of, sequences_of

GROWTH = 1.5
"""By which a pool that is full becomes larger."""
LEAST = 512
"""Places of a pool at first."""


class Places:
    """Reference counts of the places in the pools."""

    def __init__(self) -> None:
        self.uses = np.zeros(LEAST, dtype=np.int32)
        self._free, self._left = np.arange(LEAST)[::-1].copy(), LEAST

    def take(self, count: int) -> np.ndarray:
        """Allocate free places, (count,)."""
        if count > self._left:
            before, size = len(self.uses), max(int(len(self.uses) * GROWTH), len(self.uses) + count)
            self.uses = np.concatenate([self.uses, np.zeros(size - before, dtype=np.int32)])
            kept = self._free[: self._left]
            self._free = np.concatenate([np.arange(before, size)[::-1], kept, np.zeros(before - len(kept), dtype=int)])
            self._left += size - before
        self._left -= count
        places = self._free[self._left : self._left + count][::-1].copy()
        self.uses[places] = 1
        return places

    def release(self, places: np.ndarray) -> None:
        """Free the places that no other sequence uses."""
        self.uses[places] -= 1
        unused = places[self.uses[places] == 0]
        self._free[self._left : self._left + len(unused)] = unused
        self._left += len(unused)


@dataclass
class Step:
    """The tokens that one call of the model computes.

    Args:
        where: (N,) places of the tokens.
        paths: for each sequence the places that it reads, and the indices of its queries among the N tokens.
        size: number of places in a pool.
    """

    where: Tensor
    paths: Sequence[Path]
    size: int
    _cut: dict[Any, Any] = field(default_factory=dict)

    def cut(self, made: Any, queries: int, keys: int, window: int | None) -> Any:
        """Return `sequences_of` or `pieces_of` of the paths, with virtual tokens in front of each."""
        asking, virtual = queries - len(self.where), keys - len(self.where)
        longest = virtual + max(len(path) for path, _ in self.paths)
        key = made, asking, virtual, None if window is None or window >= longest else window
        if key not in self._cut:
            front = np.arange(virtual)
            paths = [(np.concatenate([front, path + virtual]), own + asking) for path, own in self.paths]
            paths += [(front[:asking], front[:asking])] if asking else []
            self._cut[key] = made(paths, key[-1], self.where.device)
        return self._cut[key]


class PoolDecoder:
    """An `ftengine.api.Decoder` for a model whose attention gets a `Step` as its mask.

    Args:
        model: a decoder with its output head.
        state: the cached keys and values, and the current step.
    """

    def __init__(self, model: Any, state: DecoderState) -> None:
        self._model, self._state = model, state
        self._some = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._device = model.get_input_embeddings().weight.device
        self._places, self._next = Places(), 0
        self._sequences: dict[int, np.ndarray] = {}
        self._new = list[tuple[int, Sequence[int]]]()

    def fork(self, sequence: int, length: int) -> int:
        shared = self._sequences[sequence][:length] if length else np.zeros(0, dtype=np.int64)
        self._places.uses[shared] += 1
        self._next += 1
        self._sequences[self._next] = shared
        return self._next

    def append(self, sequence: int, tokens: Sequence[int]) -> None:
        self._sequences[sequence] = np.concatenate([self._sequences[sequence], self._places.take(len(tokens))])
        self._new.append((sequence, tokens))

    def free(self, sequence: int) -> None:
        self._places.release(self._sequences.pop(sequence))

    def compute(self) -> Tensor:
        """Return (sequences, vocabulary) logits, after one call of the model with (1, N) tokens and positions."""
        ids, positions, paths, count = list[int](), list[np.ndarray](), list[Path](), 0
        for sequence, tokens in self._new:
            path = self._sequences[sequence]
            ids += tokens
            positions.append(np.arange(len(path) - len(tokens), len(path)))
            paths.append((path, np.arange(count, count + len(tokens))))
            count += len(tokens)
        where = np.concatenate([path[-len(own) :] for path, own in paths])
        last = torch.tensor([own[-1] for _, own in paths], device=self._device)
        self._new.clear()
        self._state.step = Step(torch.from_numpy(where).to(self._device), paths, len(self._places.uses))
        given = {"input_ids": torch.tensor([ids]), "position_ids": torch.from_numpy(np.concatenate(positions))[None]}
        given = {name: x.to(self._device) for name, x in given.items()}
        if self._some:
            return self._model(**given, use_cache=False, logits_to_keep=last).logits[0]
        return self._model(**given, use_cache=False).logits[0, last]


@dataclass
class DecoderState:
    """The current step of a generating model, and the cached keys and values of its layers.

    Args:
        attention: number of attention calls that were computed in this way.
    """

    step: Step | None = None
    attention: int = 0
    _pools: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kwargs: Any
    ) -> Tensor:
        """Return (1, N, heads, D): attention of the step's tokens over the pool, to which their keys are added."""
        assert self.step is not None
        self.attention += 1
        step, asked = self.step, (query.shape[2], key.shape[2], window)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
        virtual = len(k) - len(step.where)
        pools = self._pool(module, k, v, virtual + step.size)
        for pool, x in zip(pools, (k, v), strict=True):
            pool[:virtual] = x[:virtual]
            pool.index_copy_(0, step.where + virtual if virtual else step.where, x[virtual:])
        if compiled(query, value, kwargs):
            return by_kernel(q, *pools, step.cut(sequences_of, *asked), kwargs.get("scaling"), window or 0)[None]
        pieces: Pieces = step.cut(pieces_of, *asked)
        return by_torch(module, q, *pools, pieces, **kwargs)[None]

    def _pool(self, module: nn.Module, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the pools of a layer, (size, key heads, D) each."""
        before = self._pools.get(module)
        if before is None or len(before[0]) < size:
            larger = tuple(x.new_zeros(size, *x.shape[1:]) for x in (k, v))
            for pool, x in zip(larger, before or (), strict=False):
                pool[: len(x)] = x
            self._pools[module] = larger[0], larger[1]
        return self._pools[module]
