"""Rows of tokens, each beginning once, and the pieces over which attention is computed.

A batch becomes a forest. Its rows are sorted, and of each only what the row before it does not begin with is computed.
A token is at the position that it has in its own row and attends to what stands before it there. Prefix Grouper
(arXiv:2506.05433) does this for the prompt of a group of answers.

Attention is computed over pieces: what is new of a row (queries) against the whole row (keys), pieces of like size
together, so that no mask spans the tokens of two rows; a long beginning is a piece of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftengine.model.forest_attention import Piece, Pieces

SHORTEST = 8
"""Tokens that rows must share at least."""

WASTE, CALL = 1.25, 1 << 16
"""How much more than needed pieces that are computed together may compute, and products of a query and a key that take
about as long as a call of their own."""

LONG = 128
"""Tokens of a beginning from which on what follows sees it in a product of its own, without copies of its keys: of 200
that is a quarter quicker, of 24 or 60 slower."""


@dataclass(frozen=True)
class Forest:
    """The tokens of rows, each beginning once.

    Args:
        ids, positions: (1, N) int64.
        rows: of each row, which of the N tokens it is made of.
        new: how many tokens of each row are computed for it, the last ones.
        order: in which the rows' new tokens lie.
    """

    ids: Tensor
    positions: Tensor
    rows: Sequence[np.ndarray]
    new: Sequence[int]
    order: Sequence[int]
    _pieces: dict[Any, Pieces] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device | None = None) -> Forest:
        """Return the forest of rows of tokens."""
        paths, new = [np.zeros(0, dtype=np.int64)] * len(rows), [0] * len(rows)
        tokens, places, count = list[np.ndarray](), list[np.ndarray](), 0
        order, before = sorted(range(len(rows)), key=lambda i: rows[i].tobytes()), -1
        for row in order:
            shared = _shared(rows[before], rows[row]) if before >= 0 else 0
            new[row] = len(rows[row]) - shared
            paths[row] = np.concatenate([paths[before][:shared], np.arange(count, count + new[row])])
            tokens.append(rows[row][shared:])
            places.append(np.arange(shared, len(rows[row])))
            count, before = count + new[row], row
        ids, positions = (torch.from_numpy(np.concatenate(x))[None].to(device) for x in (tokens, places))
        return cls(ids, positions, paths, new, order)

    @property
    def tokens(self) -> int:
        """How many tokens are computed."""
        return self.ids.shape[1]

    def pieces(self, queries: int, keys: int, window: int | None, apart: bool) -> Pieces:
        """Return the pieces of attention.

        Args:
            queries, keys: how many there are; those beyond the forest's tokens are virtual ones, in front of all rows.
            window: how many tokens back a query sees, itself included; None: all.
            apart: whether long beginnings may be pieces of their own.
        """
        longest = max(map(len, self.rows)) + keys - self.tokens
        whole = window is None or window >= longest
        asked = queries - self.tokens, keys - self.tokens, None if whole else window, whole and apart
        if asked not in self._pieces:
            self._pieces[asked] = self._cut(*asked)
        return self._pieces[asked]

    def beginnings(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, stop) of each beginning: its tokens from start to end, and what follows it until stop."""
        shared = [len(self.rows[row]) - self.new[row] for row in self.order] + [0]
        ends = np.cumsum([self.new[row] for row in self.order])
        known = set[tuple[int, int]]()
        for i, most in enumerate(shared):
            first, last = i - 1, i
            while first > 0 and shared[first] >= most:
                first -= 1
            while shared[last + 1 :] and shared[last + 1] >= most:
                last += 1
            before = max(shared[first], shared[last + 1]) if most else 0
            if most > before and (first, most) not in known:
                known.add((first, most))
                path = self.rows[self.order[first]]
                start, end, stop = int(path[before]), int(path[most - 1]) + 1, int(ends[last])
                if stop > end:  # not of rows that are all the same
                    yield start, end, stop

    def _cut(self, asking: int, virtual: int, window: int | None, apart: bool) -> Pieces:
        """Cut attention into pieces, with so many virtual queries and keys in front."""
        front, device = np.arange(virtual), self.ids.device
        long = [x for x in self.beginnings() if apart and x[1] - x[0] >= LONG]
        covered = np.zeros(self.tokens, dtype=bool)
        cuts = np.unique([x[1] for x in long])
        for start, end, _ in long:
            covered[start:end] = True
        ways = list[tuple[np.ndarray, int]]()
        for row, new in zip(self.rows, self.new, strict=True):
            own = row[len(row) - new :]
            for part in np.split(own, np.searchsorted(own, cuts)) if new else ():
                if len(part):
                    before = row[: np.searchsorted(row, part[0])]
                    way = np.concatenate([front, before[~covered[before]] + virtual, part + virtual])
                    ways.append((way, len(part)))
        if asking:
            ways.append((front[:asking], asking))
        pieces, places, count = list[Piece](), np.zeros(asking + self.tokens, dtype=np.int64), 0
        for group in _grouped(ways):
            wide, most = max(new for _, new in group), max(len(way) for way, _ in group)
            keys, last = np.zeros((len(group), most), dtype=np.int64), np.zeros((len(group), wide), dtype=np.int64)
            queries = np.zeros_like(last)
            for i, (way, new) in enumerate(group):
                keys[i, : len(way)] = way
                last[i] = len(way) - new + np.minimum(np.arange(wide), new - 1)
                queries[i] = way[last[i]] - virtual + asking
                places[queries[i, :new]] = count + i * wide + np.arange(new)
            count += queries.size
            column = torch.from_numpy(last)[:, None, :, None]
            seen = torch.arange(most) <= column
            if window is not None:
                seen &= torch.arange(most) > column - window
            filled = torch.from_numpy(np.arange(wide) >= np.array([[new] for _, new in group]))[:, None]
            pieces.append(
                Piece(
                    torch.from_numpy(queries).to(device),
                    torch.from_numpy(keys).to(device),
                    seen.to(device) if wide != most or window is not None else None,
                    filled.to(device) if filled.any() else None,
                )
            )
        beginnings = [(slice(b + asking, c + asking), slice(a + virtual, b + virtual)) for a, b, c in long]
        return Pieces(pieces, torch.from_numpy(places).to(device), beginnings)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return with how many tokens two rows begin alike, 0 where that is not worth it."""
    most = min(len(one), len(other))
    apart = np.flatnonzero(one[:most] != other[:most])
    shared = int(apart[0]) if len(apart) else most
    return shared if shared >= SHORTEST else 0


def _grouped(paths: list[tuple[np.ndarray, int]]) -> Iterator[list[tuple[np.ndarray, int]]]:
    """Put paths of like size together; those that are new from their first token on apart, which need no mask."""
    for first in (True, False):
        group, needed = list[tuple[np.ndarray, int]](), 0
        for path in sorted((x for x in paths if (len(x[0]) == x[1]) is first), key=lambda x: (x[1], len(x[0]))):
            own = path[1] * len(path[0])
            computed = (len(group) + 1) * path[1] * max(len(x) for x, _ in (*group, path))
            if group and computed > WASTE * (needed + own) + CALL:
                yield group
                group, needed = [], 0
            group.append(path)
            needed += own
        if group:
            yield group
