"""Prefix trees of rows of tokens, and the pieces over which attention is computed.

The rows of a batch are sorted, and for each row only the tokens after its common prefix with the previous row are
computed. A token keeps its position in its own row and attends to the tokens before it there. Prefix Grouper
(arXiv:2506.05433) does this for the prompt of a group of answers.

A row's new tokens (queries) attend to the whole row (keys). Attention is computed row by row or, for kernels that need
rows of equal size, over pieces of similar size, so that no mask spans two rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftengine.model.tokens import common_prefix
from ftengine.ops.attention import Sequences
from ftengine_builtins.fast_paths.shared_prefix.attention import Piece, Pieces

WASTE, CALL = 1.25, 1 << 16
"""How much more than needed pieces that are computed together may compute, and products of a query and a key that take
about as long as a call of their own."""

MOST, PARTS = 256, 8
"""Queries of a sequence: longer ones are several, over which threads are shared out, as far as that makes no more than
some eight of all tokens. Each part lists its keys anew, and gradients of all that are listed exist at one time."""


Path = tuple[np.ndarray, np.ndarray]
"""Of a sequence what it reads, and its queries, of which each reads what stands before it and itself, the last ones."""


@dataclass(frozen=True)
class PrefixTree:
    """The tokens of rows, with each common prefix once.

    Args:
        ids, positions: (1, N) int64.
        rows: for each row, the indices of its tokens among the N.
        new: number of tokens computed for each row, its last ones.
        order: the order of the rows by which their new tokens are concatenated.
    """

    ids: Tensor
    positions: Tensor
    rows: Sequence[np.ndarray]
    new: Sequence[int]
    order: Sequence[int]
    _cut: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device | None = None) -> PrefixTree:
        """Return the prefix tree of rows of tokens."""
        paths, new = [np.zeros(0, dtype=np.int64)] * len(rows), [0] * len(rows)
        tokens, places, count = list[np.ndarray](), list[np.ndarray](), 0
        order, before = sorted(range(len(rows)), key=lambda i: rows[i].tobytes()), -1
        for row in order:
            shared = common_prefix(rows[before], rows[row]) if before >= 0 else 0
            new[row] = len(rows[row]) - shared
            paths[row] = np.concatenate([paths[before][:shared], np.arange(count, count + new[row])])
            tokens.append(rows[row][shared:])
            places.append(np.arange(shared, len(rows[row])))
            count, before = count + new[row], row
        ids, positions = (torch.from_numpy(np.concatenate(x))[None].to(device) for x in (tokens, places))
        return cls(ids, positions, paths, new, order)

    @property
    def tokens(self) -> int:
        """The number of computed tokens."""
        return self.ids.shape[1]

    def sequences(self, queries: int, keys: int, window: int | None) -> Sequences:
        """Return the keys that each query attends to.

        Args:
            queries, keys: their numbers; those that exceed the tree's tokens are virtual tokens in front of all rows.
            window: size of the sliding window, the query included; None: no window.
        """
        return self._known(self._sequences, queries, keys, window)

    def pieces(self, queries: int, keys: int, window: int | None) -> Pieces:
        """Return the pieces of attention; arguments as of `sequences`."""
        return self._known(self._pieces, queries, keys, window)

    def _known(self, make: Callable[[int, int, int | None], Any], queries: int, keys: int, window: int | None) -> Any:
        longest = max(map(len, self.rows)) + keys - self.tokens
        asked = queries - self.tokens, keys - self.tokens, None if window is None or window >= longest else window
        if (make.__name__, asked) not in self._cut:
            self._cut[make.__name__, asked] = make(*asked)
        return self._cut[make.__name__, asked]

    def _paths(self, asking: int, virtual: int) -> list[Path]:
        """Return the path of each row that has new tokens, and of the virtual ones in front."""
        front, rows = np.arange(virtual), zip(self.rows, self.new, strict=True)
        paths = [(np.concatenate([front, row + virtual]), row[-new:] + asking) for row, new in rows if new]
        return [*paths, (front[:asking], front[:asking])] if asking else paths

    def _sequences(self, asking: int, virtual: int, window: int | None) -> Sequences:
        return sequences_of(self._paths(asking, virtual), window, self.ids.device)

    def _pieces(self, asking: int, virtual: int, window: int | None) -> Pieces:
        return pieces_of(self._paths(asking, virtual), window, self.ids.device)


def sequences_of(paths: Sequence[Path], window: int | None, device: torch.device) -> Sequences:
    """Return the keys that each query attends to; long paths are divided into several parts."""
    parts, most = list[Path](), max(MOST, -(-sum(len(own) for _, own in paths) // PARTS))
    for read, own in paths:
        for first in range(0, len(own), most):
            asked = own[first : first + most]
            end = len(read) - len(own) + first + len(asked)
            parts.append((read[max(0, end - len(asked) - window + 1 if window else 0) : end], asked))
    sizes = np.array([(len(own), len(read)) for read, own in parts])
    queries, keys = (np.concatenate(x) for x in ([own for _, own in parts], [read for read, _ in parts]))
    made = (np.ascontiguousarray(x) for x in (queries, keys, sizes))
    return Sequences(*(torch.from_numpy(x).to(device) for x in made))


def pieces_of(paths: Sequence[Path], window: int | None, device: torch.device) -> Pieces:
    """Divide attention into pieces of paths with similar size."""
    pieces, places, count = list[Piece](), np.zeros(sum(len(own) for _, own in paths), dtype=np.int64), 0
    for group in _grouped(paths):
        wide, most = max(len(own) for _, own in group), max(len(read) for read, _ in group)
        keys, last = np.zeros((len(group), most), dtype=np.int64), np.zeros((len(group), wide), dtype=np.int64)
        queries = np.zeros_like(last)
        for i, (read, own) in enumerate(group):
            repeated = np.minimum(np.arange(wide), len(own) - 1)
            keys[i, : len(read)] = read
            last[i] = len(read) - len(own) + repeated
            queries[i] = own[repeated]
            places[own] = count + i * wide + np.arange(len(own))
        count += queries.size
        column = torch.from_numpy(last)[:, None, :, None]
        visible = torch.arange(most) <= column
        if window is not None:
            visible &= torch.arange(most) > column - window
        mask = visible.to(device) if wide != most or window is not None else None
        pieces.append(Piece(torch.from_numpy(queries).to(device), torch.from_numpy(keys).to(device), mask))
    return Pieces(pieces, torch.from_numpy(places).to(device))


def _grouped(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Put paths of like size together; those that are new from their first token on apart, which need no mask."""
    for first in (True, False):
        group, needed = list[Path](), 0
        some = (path for path in paths if (len(path[0]) == len(path[1])) is first)
        for path in sorted(some, key=lambda x: (len(x[1]), len(x[0]))):
            own = len(path[1]) * len(path[0])
            computed = (len(group) + 1) * len(path[1]) * max(len(x) for x, _ in (*group, path))
            if group and computed > WASTE * (needed + own) + CALL:
                yield group
                group, needed = [], 0
            group.append(path)
            needed += own
        if group:
            yield group
