"""Decoders over rows with shared prefixes: one row of tokens replaces a batch.

Each token attends only to the tokens before it in its own rows (`tree`, `attention`). After the last layer each row
gets the states of all its tokens back, so the gradient of a shared token is the sum over its rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ftengine.equivalence import STATES, row_distances
from ftengine.model.probing import probed
from ftengine.model.token_loss import states_of
from ftengine.ops.attention import has_kernel
from ftengine_builtins.fast_paths.shared_prefix.attention import by_kernel, by_torch, compiled
from ftengine_builtins.fast_paths.shared_prefix.decoder import DecoderState, PoolDecoder
from ftengine_builtins.fast_paths.shared_prefix.tree import PrefixTree

ATTENTION = "ftengine_shared_prefix"
"""Under this name, transformers has the attention that reads prefix trees, and torch's where there is none."""

WORTH = 0.92
"""Where torch computes its attention, a prefix tree has at most this share of a batch's tokens, padding included, or
the batch is computed as it is: both take the same time at about 0.94. With a kernel, any prefix tree is as fast."""

CHECKED = (4, 6, 2, 1, 3)
"""Tokens by which a model is checked: what rows share, and what each has of its own behind it. Each is computed in
float32, and of few, one that should not be attended to weighs more."""
TENSORS = ("input_ids", "attention_mask", "position_ids")
LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""Rotary embeddings whose angles depend on the longest row of a call: keys that are kept would be of another length."""
CONFIGURED = ("use_cache", "output_attentions", "output_hidden_states")
"""What a decoder's config says where it is not asked otherwise."""

_OTHERS = {"input_ids", "attention_mask", "position_ids", "use_cache", "return_dict"}
"""What a decoder may be given where it computes a prefix tree."""


def prefix_tree_of(inputs: Mapping[str, Any], worth: float = 1.0) -> tuple[PrefixTree, Tensor] | None:
    """Return the prefix tree of a decoder's arguments, and (B, T) the tree's index of each token.

    None if they are not rows of tokens, or if the tree is not faster. The result is cached as long as the tensors live.

    Args:
        inputs: input_ids (B, T), with the attention_mask of rows padded on the right (and optional `position_ids` that
            count tokens), or with the `position_ids` of packed rows, which restart with each row.
        worth: the largest share of a batch's tokens, padding included, that a prefix tree may have (`worth_of`).
    """
    ids, mask, positions = (inputs.get(name) for name in TENSORS)
    odd = any(value is not None and value is not False for name, value in inputs.items() if name not in _OTHERS)
    if odd or inputs.get("use_cache") or not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    if ids.is_inference() or torch.is_inference_mode_enabled():  # how often such tensors are changed is not counted
        return _prefix_tree_of(ids, mask, positions, worth)
    asked = [worth, id(mask), id(positions), *(x._version for x in (ids, mask, positions) if x is not None)]
    known = _trees.get(ids)
    if known is None or known[0] != asked:
        known = _trees[ids] = asked, _prefix_tree_of(ids, mask, positions, worth), (mask, positions)
    return known[1]


_trees: Any = WeakTensorKeyDictionary()
"""By token ids with what they were asked, and the prefix tree that was found."""


def _prefix_tree_of(
    ids: Tensor, mask: Tensor | None, positions: Tensor | None, worth: float
) -> tuple[PrefixTree, Tensor] | None:
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
    if not lengths or not all(lengths):
        return None
    tree = PrefixTree.of(rows, ids.device)
    if tree.tokens > worth * tokens.size:
        return None
    numbers = np.zeros(tokens.shape, dtype=np.int64)
    numbers[np.ones(tokens.shape, dtype=bool) if kept is None else kept] = np.concatenate(tree.rows)
    return tree, torch.from_numpy(numbers).to(ids.device)


@dataclass
class Calls:
    """Counts of a model's calls while it may share prefixes.

    Args:
        stack: the decoder.
        attention: how often attention was computed over a prefix tree.
        packed: whether the decoder's last input was packed rows.
    """

    stack: nn.Module
    attention: int = 0
    packed: bool = False


@dataclass(frozen=True)
class _Mask:
    """What a layer's attention is given as its mask."""

    tree: PrefixTree
    window: int | None
    calls: Calls


@dataclass(frozen=True)
class _Growing:
    """What a layer's attention is given as its mask where answers grow."""

    state: DecoderState
    window: int | None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return (1, N, heads, D): transformers' attention over a prefix tree, or torch's attention for another mask."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if isinstance(attention_mask, _Growing):
        state, window = attention_mask.state, attention_mask.window
        return state.attend(module, query, key, value, window, **kwargs), None
    if not isinstance(attention_mask, _Mask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attention_mask.calls.attention += 1
    tree, window, asked = attention_mask.tree, attention_mask.window, (query.shape[2], key.shape[2])
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if compiled(query, value, kwargs):
        result = by_kernel(q, k, v, tree.sequences(*asked, window), kwargs.get("scaling"), window or 0)
    else:
        _by_torch.setdefault(attention_mask.calls.stack, set()).add(module.training)
        result = by_torch(module, q, k, v, tree.pieces(*asked, window), **kwargs)
    return result[None], None


_by_torch: WeakKeyDictionary[nn.Module, set[bool]] = WeakKeyDictionary()
"""Decoders whose attention over a prefix tree torch computed: while they trained (True), and else (False)."""


def worth_of(stack: nn.Module, device: torch.device) -> float:
    """Return the largest share of a batch's tokens that a prefix tree may have to be as fast as rows."""
    return WORTH if stack.training in _by_torch.get(stack, ()) or not has_kernel(device) else 1.0


_current: dict[int, tuple[PrefixTree, Tensor]] = {}
"""Prefix trees that models are computing, by the id of the decoder's config, which is all that makers of masks get."""

_calls: dict[int, Calls] = {}
"""What models that may share prefixes did, by the same."""

_found: WeakKeyDictionary[nn.Module, tuple[Any, int]] = WeakKeyDictionary()
"""Of models that were checked: what they were made of then, and how many of their layers share prefixes."""


@contextmanager
def sharing_prefixes(model: Any) -> Iterator[Calls]:
    """Within the block, let a decoder of transformers compute shared prefixes once, if that saves work.

    Yields counts of what was shared.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    stack = model.get_decoder()
    key, before = id(stack.config), stack.config._attn_implementation
    if key in _calls:
        yield _calls[key]
        return
    names = list(inspect.signature(type(stack).forward).parameters)[1:]

    def begin(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if called is not stack or key in _answering:  # a copy of the model, hooks and all
            return None
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        asked = {name: getattr(stack.config, name, None) for name in CONFIGURED if given.get(name) is None}
        _current.pop(key, None)
        _calls[key].packed = given.get("position_ids") is not None and given.get("attention_mask") is None
        ids = given.get("input_ids")
        built = prefix_tree_of({**given, **asked}, worth_of(stack, ids.device)) if isinstance(ids, Tensor) else None
        if built is None:
            return None
        _current[key], tree = built, built[0]
        return (), {**given, "input_ids": tree.ids, "position_ids": tree.positions, "attention_mask": None}

    def end(called: nn.Module, args: Any, output: Any) -> Any:
        built = _current.pop(key, None) if called is stack else None
        if built is None or output is None:
            return None
        states = output[0][0].index_select(0, built[1].flatten()).unflatten(0, built[1].shape)
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
    _calls[key] = Calls(stack)
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
    if key not in _current and key not in _answering:
        return sdpa_mask(**given)
    if given.get("use_vmap"):
        raise ValueError("a mask of the model's own is neither causal nor a sliding window")
    if key in _answering:
        return _Growing(_answering[key], given.get("local_size"))
    return _Mask(_current[key][0], given.get("local_size"), _calls[key])


_answering: dict[int, DecoderState] = {}
"""What models that answer compute, by the id of the decoder's config."""


@contextmanager
def answering(model: Any) -> Iterator[PoolDecoder]:
    """Within the block, let a decoder of transformers generate token by token over cached keys and values.

    The model is called with one row (1, N) of the new tokens of all answers, with their positions.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    config = model.get_decoder().config
    before, key = config._attn_implementation, id(config)
    if key in _answering:
        raise RuntimeError("the model is generating already; one generation ends before the next begins")
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask)
    state = _answering[key] = DecoderState()
    config._attn_implementation = ATTENTION
    try:
        yield PoolDecoder(model, state)
    finally:
        config._attn_implementation = before
        del _answering[key]


def supports_prefix_sharing(model: Any) -> int:
    """Return the number of layers whose attention over prefix trees equals that over single rows; 0: not supported."""
    if not _is_decoder(model):
        return 0
    if _found.get(model, (None, 0))[0] != (parts := _parts(model)):  # a strategy may have changed it
        if id(model.get_decoder().config) in _calls:  # what is to be compared with rows computes none
            return 0
        _found[model] = parts, _check(model)
    return _found[model][1]


def probe_result(model: Any) -> list[Any] | None:
    """Return the result of the check of a model that shares prefixes, as JSON."""
    if model not in _found or _found[model][0] != _parts(model) or not _found[model][1]:
        return None
    return [_found[model][1], sorted(_by_torch.get(model.get_decoder(), ()))]


def restore_probe_result(model: Any, found: list[Any]) -> None:
    """Restore what `probe_result` returned for the same model in an earlier run, so that it is not checked again."""
    layers, by_torch = found
    _found[model] = _parts(model), layers
    _by_torch.setdefault(model.get_decoder(), set()).update(by_torch)


def _parts(model: Any) -> Any:
    return type(model.get_decoder()), sum(1 for _ in model.modules()), sum(1 for _ in model.parameters())


def _check(model: Any) -> int:
    batch = _check_rows(model)[1]
    kept = batch["attention_mask"].bool()
    try:
        with probed(model):
            alone = states_of(model, batch)[kept]
            with sharing_prefixes(model) as calls:
                together = states_of(model, batch)[kept]
    except Exception:  # a model that makes something else of positions or masks fails in any way
        return 0
    return calls.attention if row_distances(together, alone).max() <= STATES else 0


_grow: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()
"""Of models that were checked: what they were made of then, and whether `answering` computes their logits."""


def supports_answering(model: Any) -> bool:
    """Return whether `answering` computes the same logits as a decoder does for whole rows."""
    from torch.distributed.tensor import DTensor

    divided = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if divided or not supports_prefix_sharing(model) or _rotations(model) & LENGTH_DEPENDENT:
        return False
    if _grow.get(model, (None, False))[0] != (parts := _parts(model)):
        try:
            with probed(model):
                _grow[model] = parts, _check_answering(model)
        except Exception:  # as in `_check`
            _grow[model] = parts, False
    return _grow[model][1]


def _rotations(model: Any) -> set[Any]:
    """Return the kinds of a model's rotary embeddings."""
    given = getattr(model.get_decoder().config, "rope_parameters", None) or {}
    return {x.get("rope_type") for x in (given, *given.values()) if isinstance(x, dict)}


def _check_answering(model: Any) -> bool:
    rows, batch = _check_rows(model)
    expected = model(**batch).logits[torch.arange(len(rows)), batch["attention_mask"].sum(1) - 1]
    found, shared = dict[int, Tensor](), CHECKED[0]
    with answering(model) as decoder:
        start = decoder.fork(-1, 0)
        decoder.append(start, rows[0][:shared].tolist())
        own = [decoder.fork(start, shared) for _ in rows]
        for place in range(shared, max(map(len, rows))):
            growing = [i for i, row in enumerate(rows) if len(row) > place]
            for i in growing:
                decoder.append(own[i], [int(rows[i][place])])
            found.update(zip(growing, decoder.compute()[-len(growing) :], strict=True))
    return bool(row_distances(torch.stack([found[i] for i in range(len(rows))]), expected).max() <= STATES)


def _check_rows(model: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return rows of tokens that begin alike, and the batch of them, padded at its end."""
    device, count = next(model.parameters()).device, model.get_input_embeddings().num_embeddings
    some = torch.randint(count, (sum(CHECKED),), generator=torch.Generator().manual_seed(0)).to(device)
    shared, *own = some.split(CHECKED)
    rows = [torch.cat([shared, x]) for x in own]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (rows, [torch.ones_like(row) for row in rows])
    )
    return rows, {"input_ids": ids, "attention_mask": mask}


def _is_decoder(model: Any) -> bool:
    """Return whether a model is a transformers decoder with torch's attention, by the mask that attention gets."""
    stack = model.get_decoder() if getattr(model, "_supports_attention_backend", False) else None
    config = getattr(stack, "config", None)
    return (
        getattr(config, "_attn_implementation", None) in ("sdpa", ATTENTION)
        and not getattr(config, "is_encoder_decoder", False)
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        and isinstance(model.get_input_embeddings(), nn.Embedding)
        and model.get_output_embeddings() is not None
    )
