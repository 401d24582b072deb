"""Rows that begin alike, computed once where they do: one row of tokens, in which each attends to its own beginning.

A batch becomes a forest. Its rows are sorted, and of each only what the row before it does not begin with is computed.
A token is at the position that it has in its own row and attends to what stands before it there; behind the last layer
each row gets the states of all its tokens back, so that the gradient of a shared token is the sum of its copies'.
Prefix Grouper (arXiv:2506.05433) does this for the prompt of a group of answers.

Attention is computed over pieces: what is new of a row (queries) against the whole row (keys), pieces of like size
together, so that no mask spans the tokens of two rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ftengine.model.in_float32 import in_float32
from ftengine.model.modes import evaluating
from ftengine.model.packing import LIMIT
from ftengine.model.probing import visible
from ftengine.model.token_loss import states_of

ATTENTION = "ftengine_forest"
"""Under this name, transformers has the attention that reads forests, and torch's where there is none."""

SHORTEST = 8
"""Tokens that rows must share at least."""

WORTH = 0.92
"""Of a batch's tokens, padding included, a forest computes at most this share, or the batch is computed as it is: both
take the same time at about 0.94."""

WASTE, CALL = 1.25, 1 << 16
"""How much more than needed pieces that are computed together may compute, and products of a query and a key that take
about as long as a call of their own."""

CHECKED = (24, 40, 9, 5, 12)
"""Tokens by which a model is checked: what rows share, and what each has of its own behind it."""

TENSORS = ("input_ids", "attention_mask", "position_ids")
CONFIGURED = ("use_cache", "output_attentions", "output_hidden_states")
"""What a decoder's config says where it is not asked otherwise."""

_OTHERS = {"input_ids", "attention_mask", "position_ids", "use_cache", "return_dict"}
"""What a decoder may be given where it computes a forest."""


@dataclass(frozen=True)
class Piece:
    """What is new of some rows.

    Args:
        queries: (m, L) tokens of the forest; of shorter ones the last is repeated.
        keys: (m, P) tokens of the forest, those before them included.
        mask: (m, 1, L, P), which keys a query sees; None: as many as it has in front of it, and itself.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Forest:
    """The tokens of rows, each beginning once.

    Args:
        ids, positions: (1, N) int64.
        rows: of each row, which of the N tokens it is made of.
        new: how many tokens of each row are computed for it, the last ones.
    """

    ids: Tensor
    positions: Tensor
    rows: Sequence[np.ndarray]
    new: Sequence[int]
    _pieces: dict[Any, tuple[list[Piece], Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device | None = None) -> Forest:
        """Return the forest of rows of tokens."""
        found, new = [np.zeros(0, dtype=np.int64)] * len(rows), [0] * len(rows)
        tokens, places, count = list[np.ndarray](), list[np.ndarray](), 0
        before = -1
        for row in sorted(range(len(rows)), key=lambda i: rows[i].tobytes()):
            shared = _shared(rows[before], rows[row]) if before >= 0 else 0
            new[row] = len(rows[row]) - shared
            found[row] = np.concatenate([found[before][:shared], np.arange(count, count + new[row])])
            tokens.append(rows[row][shared:])
            places.append(np.arange(shared, len(rows[row])))
            count, before = count + new[row], row
        ids, positions = (torch.from_numpy(np.concatenate(x))[None].to(device) for x in (tokens, places))
        return cls(ids, positions, found, new)

    @property
    def tokens(self) -> int:
        """How many tokens are computed."""
        return self.ids.shape[1]

    def pieces(self, queries: int, keys: int, window: int | None) -> tuple[list[Piece], Tensor]:
        """Return the pieces of attention, and where each query's result stands among theirs.

        Args:
            queries, keys: how many there are; those beyond the forest's tokens are virtual ones, in front of all rows.
            window: how many tokens back a query sees, itself included; None: all.
        """
        asked = queries - self.tokens, keys - self.tokens, window
        if asked not in self._pieces:
            self._pieces[asked] = self._cut(*asked)
        return self._pieces[asked]

    def _cut(self, asking: int, virtual: int, window: int | None) -> tuple[list[Piece], Tensor]:
        """Cut attention into pieces, with so many virtual queries and keys in front."""
        front, device = np.arange(virtual), self.ids.device
        paths = [(np.concatenate([front, row + virtual]), new) for row, new in zip(self.rows, self.new, strict=True)]
        paths += [(front[:asking], asking)]
        found, places, count = list[Piece](), np.zeros(asking + self.tokens, dtype=np.int64), 0
        for group in _grouped([path for path in paths if path[1]]):
            wide, long = max(new for _, new in group), max(len(path) for path, _ in group)
            keys, last = np.zeros((len(group), long), dtype=np.int64), np.zeros((len(group), wide), dtype=np.int64)
            queries = np.zeros_like(last)
            for i, (path, new) in enumerate(group):
                keys[i, : len(path)] = path
                last[i] = len(path) - new + np.minimum(np.arange(wide), new - 1)
                queries[i] = path[last[i]] - virtual + asking
                places[queries[i, :new]] = count + i * wide + np.arange(new)
            count += queries.size
            whole, seen = wide == long and (window is None or window >= long), None
            if not whole:
                asked, place = torch.from_numpy(last)[:, None, :, None].to(device), torch.arange(long, device=device)
                seen = place <= asked
                if window is not None:
                    seen &= place > asked - window
            found.append(Piece(torch.from_numpy(queries).to(device), torch.from_numpy(keys).to(device), seen))
        return found, torch.from_numpy(places).to(device)


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


def forest_of(inputs: Mapping[str, Any]) -> tuple[Forest, Tensor] | None:
    """Return the forest of what a decoder is called with, and (B, T) the number in it of each place.

    None where it is called with something else than rows of tokens, or where that saves little.

    Args:
        inputs: input_ids (B, T), with attention_mask of rows that are padded at their end (`position_ids` may be there
            then, and count tokens), or with the `position_ids` of packed rows, which begin anew with each.
    """
    ids, mask, positions = (inputs.get(name) for name in TENSORS)
    odd = any(value is not None and value is not False for name, value in inputs.items() if name not in _OTHERS)
    if odd or inputs.get("use_cache") or not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    tokens, kept = ids.cpu().numpy(), None if mask is None else mask.bool().cpu().numpy()
    if kept is not None and kept.shape != tokens.shape:
        return None
    if positions is not None and (positions.ndim != 2 or positions.shape[1] != tokens.shape[1]):
        return None
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    given = places if positions is None else np.broadcast_to(positions.cpu().numpy(), tokens.shape)
    if len(tokens) == 1 and kept is None and positions is not None:
        starts = np.flatnonzero(given[0] == 0)
        rows = np.split(tokens[0], starts[1:]) if len(starts) and starts[0] == 0 else []
        expected = np.concatenate([np.arange(len(row)) for row in rows]) if rows else None
        if expected is None or not np.array_equal(given[0], expected):
            return None
        lengths = [len(row) for row in rows]
    else:
        kept = np.ones(tokens.shape, dtype=bool) if kept is None else kept
        lengths = kept.sum(1).tolist()
        if not (kept == (places < np.array(lengths)[:, None])).all() or not (given == places)[kept].all():
            return None
        rows = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    if len(rows) < 2 or not all(lengths):
        return None
    forest = Forest.of(rows, ids.device)
    if forest.tokens > WORTH * tokens.size:
        return None
    numbers = np.zeros(tokens.shape, dtype=np.int64)
    numbers[np.ones(tokens.shape, dtype=bool) if kept is None else kept] = np.concatenate(forest.rows)
    return forest, torch.from_numpy(numbers).to(ids.device)


@dataclass(frozen=True)
class _Mask:
    """What a layer's attention is given as its mask."""

    forest: Forest
    window: int | None
    count: list[int]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return (1, N, heads, D): attention of transformers over a forest, or torch's where the mask is another."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, _Mask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attention_mask.count[0] += 1
    pieces, places = attention_mask.forest.pieces(query.shape[2], key.shape[2], attention_mask.window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    results = []
    for piece in pieces:
        rows = _rows(q, piece.queries), _rows(k, piece.keys), _rows(v, piece.keys)
        given = {**kwargs, "is_causal": piece.mask is None}
        results.append(sdpa_attention_forward(module, *rows, piece.mask, **given)[0].flatten(0, 1))
    joined = results[0] if len(results) == 1 else torch.cat(results)
    return joined.index_select(0, places)[None], None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Return (m, heads, L, D) of (N, heads, D)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


_current: dict[int, tuple[Forest, Tensor]] = {}
"""Forests that models are computing, by the id of the decoder's config, which is all that a maker of masks is told."""

_calls: dict[int, list[int]] = {}
"""How often models that may compute forests did, by the same."""

_found: WeakKeyDictionary[nn.Module, tuple[Any, int]] = WeakKeyDictionary()
"""Of models that were checked: what they were made of then, and how many of their layers compute forests."""


@contextmanager
def forests(model: Any) -> Iterator[list[int]]:
    """Have a decoder of transformers compute batches as forests where that saves something.

    Yields how often attention was computed over a forest, in a list of one number.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    stack = model.get_decoder()
    key, before = id(stack.config), stack.config._attn_implementation
    if key in _calls:
        yield _calls[key]
        return
    names = list(inspect.signature(type(stack).forward).parameters)[1:]

    def begin(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if called is not stack:  # a copy of the model, hooks and all
            return None
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        asked = {name: getattr(stack.config, name, None) for name in CONFIGURED if given.get(name) is None}
        _current.pop(key, None)
        if (found := forest_of({**given, **asked})) is None:
            return None
        _current[key], forest = found, found[0]
        return (), {**given, "input_ids": forest.ids, "position_ids": forest.positions, "attention_mask": None}

    def end(called: nn.Module, args: Any, output: Any) -> Any:
        found = _current.pop(key, None) if called is stack else None
        if found is None or output is None:
            return None
        states = output[0][0].index_select(0, found[1].flatten()).unflatten(0, found[1].shape)
        if isinstance(output, tuple):
            return (states, *output[1:])
        output.last_hidden_state = states
        return output

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask)
    handles = [
        stack.register_forward_pre_hook(begin, with_kwargs=True),
        stack.register_forward_hook(end, always_call=True),
    ]
    _calls[key] = [0]
    stack.config._attn_implementation = ATTENTION
    try:
        yield _calls[key]
    finally:
        stack.config._attn_implementation = before
        del _calls[key]
        _current.pop(key, None)
        for handle in handles:
            handle.remove()


def _mask(**given: Any) -> Any:
    """Return the mask of a layer, as transformers asks for it."""
    from transformers.masking_utils import sdpa_mask

    key = id(given["config"])
    if key not in _current:
        return sdpa_mask(**given)
    if given.get("use_vmap"):
        raise ValueError("a mask of the model's own is neither causal nor a sliding window")
    return _Mask(_current[key][0], given.get("local_size"), _calls[key])


@contextmanager
def as_forest(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Have a model compute inputs as a forest where that saves something and comes to the same."""
    kept = keeps_to_forests(model)  # of sharded models all processes ask, whatever rows each has
    given = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    with forests(model) if kept and forest_of(given) is not None else nullcontext():
        yield


def keeps_to_forests(model: Any) -> int:
    """Return how many layers of a model compute attention over forests and come to what rows do; 0: it does not."""
    if not _is_decoder(model):
        return 0
    parts = type(model.get_decoder()), sum(1 for _ in model.modules()), sum(1 for _ in model.parameters())
    if _found.get(model, (None, 0))[0] != parts:  # a strategy may have changed it
        _found[model] = parts, _check(model)
    return _found[model][1]


@torch.no_grad()
def _check(model: Any) -> int:
    device, count = next(model.parameters()).device, model.get_input_embeddings().num_embeddings
    some = torch.randint(count, (sum(CHECKED),), generator=torch.Generator().manual_seed(0)).to(device)
    shared, *own = some.split(CHECKED)
    rows = [torch.cat([shared, x]) for x in own]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    kept = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    batch = {"input_ids": ids, "attention_mask": kept}
    try:
        with evaluating(model), in_float32(model), visible(model):
            alone = states_of(model, batch)[kept.bool()]
            with forests(model) as calls:
                together = states_of(model, batch)[kept.bool()]
    except Exception:  # a model that makes something else of positions or masks fails in any way
        return 0
    finally:
        torch.clear_autocast_cache()  # casts made here have no graph
    apart = (alone - together).square().mean(-1) / alone.square().mean(-1)
    return calls[0] if float(apart.max().sqrt()) <= LIMIT else 0


def _is_decoder(model: Any) -> bool:
    """Say whether a model is a decoder of transformers whose attention is torch's, by the mask that it is given."""
    stack = model.get_decoder() if getattr(model, "_supports_attention_backend", False) else None
    config = getattr(stack, "config", None)
    return (
        getattr(config, "_attn_implementation", None) == "sdpa"
        and not getattr(config, "is_encoder_decoder", False)
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        and isinstance(model.get_input_embeddings(), nn.Embedding)
        and model.get_output_embeddings() is not None
    )
