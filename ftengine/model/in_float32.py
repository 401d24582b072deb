"""Computing in float32 for a while, for checks that must distinguish faults from rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

HALVES = (torch.bfloat16, torch.float16)
"""Dtypes that lose numbers: bfloat16 has 3 digits, and of years no difference would be left; float16 ends at 65,504."""

PART = 1 << 22
"""Numbers of a matrix that are converted at one time."""

Held = list[tuple[dict[str, Any], str, Tensor]]
"""Weights of half precision that float32 stands in for: whose they are, under which name."""

_half_of, _wide_of = dict[int, Tensor](), dict[int, Tensor]()
"""Weights of half precision by the address of the copy that stands in for them at the moment; copies by the weight."""


@contextmanager
def in_float32(model: nn.Module, *, recompute: bool = False) -> Iterator[None]:
    """Within the block, let a model compute in float32, without autocast and flash attention.

    Weights of half precision are converted when they are used; the model's own stay unchanged. To save memory, those of
    a block (a member of a module list) are converted only while it computes, and again where a backward pass needs
    them; matrices outside blocks, such as token embeddings and the output head, in each operation, a part at a time
    where it can be computed in parts. Packed integers stay as they are: their layers unpack to the dtype of their
    input.

    A model that uses a block's weights from outside, without calling the block, raises torch's error of different
    dtypes.

    Args:
        recompute: keep of each block only its inputs for a backward pass, and compute the rest again.
    """
    blocks = module_blocks(model)
    inside = {part for block in blocks for part in block.modules()}
    rest = [part for part in model.modules() if part not in inside]
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_pack, _unpack))
        stack.enter_context(_without_flash(model))
        stack.callback(_restore, _widen(rest, tables=True))
        for unit, parts in ((model, rest), *((block, list(block.modules())) for block in blocks)):
            if recompute and unit is not model:
                stack.enter_context(_recomputed(unit, parts))
                continue
            held = Held()
            stack.callback(_restore, held)  # an error inside leaves it widened
            for handle in (
                unit.register_forward_pre_hook(
                    lambda *_, held=held, parts=parts, tables=unit is model: held.extend(_widen(parts, tables))
                ),
                # Before FSDP takes its weights away, as after it gave them.
                unit.register_forward_hook(lambda *_, held=held: _restore(held), prepend=True),
            ):
                stack.callback(handle.remove)
        yield


@contextmanager
def _recomputed(block: nn.Module, parts: Iterable[nn.Module]) -> Iterator[None]:
    """Let a block compute in float32 with gradient checkpointing, whatever its mode."""
    forward, replaced = block.forward, "forward" in vars(block)

    def widened(*args: Any, **kwargs: Any) -> Any:
        held = _widen(parts)
        try:
            return forward(*args, **kwargs)
        finally:  # recomputing ends with an exception
            _restore(held)

    block.forward = partial(checkpoint, widened, use_reentrant=False)
    try:
        yield
    finally:
        if replaced:
            block.forward = forward
        else:
            del block.forward


class _WidenedView(NamedTuple):
    """A widened weight as autograd keeps it: the weight in half precision, and the view of its float32 copy."""

    weight: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _pack(tensor: Tensor) -> Tensor | _WidenedView:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return tensor
    weight = _half_of.get(tensor.untyped_storage().data_ptr())
    if weight is None:
        return tensor
    return _WidenedView(weight, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _unpack(saved: Tensor | _WidenedView) -> Tensor:
    if not isinstance(saved, _WidenedView):
        return saved
    wide = _wide_of.get(id(saved.weight))
    wide = saved.weight.float() if wide is None else wide
    return wide.detach().as_strided(saved.size, saved.stride, saved.offset)


def module_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the members of module lists, outermost ones, each once."""
    blocks, inside = list[nn.Module](), set[nn.Module]()
    for part in model.modules():
        if part not in inside and isinstance(part, nn.ModuleList):
            blocks += [block for block in dict.fromkeys(part) if block not in inside]
            inside.update(part.modules())
    return blocks


class _Table(Tensor):
    """A matrix of half precision that every operation takes for one of float32, without a copy of all of it.

    Rows are looked up before they are converted, and products are computed a part at a time. Other operations get a
    copy in float32 for as long as they compute.
    """

    stored: Tensor

    @staticmethod
    def __new__(cls, half: Tensor) -> _Table:
        made = Tensor._make_wrapper_subclass(
            cls, half.size(), strides=half.stride(), dtype=torch.float32, device=half.device, layout=half.layout
        )
        made.stored = half
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0]
        if func in _VIEWS:
            return cls(func(first.stored))
        if func is torch.ops.aten.embedding.default:
            return func(first.stored, *args[1:], **kwargs).float()
        if func is torch.ops.aten.mm.default and isinstance(args[1], cls) and not isinstance(first, cls):
            return _product(first, args[1].stored)
        return func(*tree_map_only(cls, _copied, args), **tree_map_only(cls, _copied, kwargs))


_VIEWS = (torch.ops.aten.detach.default, torch.ops.aten.t.default, torch.ops.aten.alias.default)


def _copied(table: _Table) -> Tensor:
    return table.stored.float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right, left (M, K) in float32, right (K, N) in half precision."""
    rows, columns = right.shape
    parts = max(1, -(-right.numel() // PART))
    if columns >= rows:
        return torch.cat([left @ part.float() for part in right.split(-(-columns // parts), 1)], 1)
    size = -(-rows // parts)
    total = left.new_zeros(len(left), columns)
    for some, part in zip(left.split(size, 1), right.split(size), strict=True):
        total += some @ part.float()
    return total


def _widen(parts: Iterable[nn.Module], tables: bool = False) -> Held:
    """Let float32 stand in for half precision; with `tables`, `_Table` for matrices."""
    from torch.distributed.tensor import DTensor  # a second of importing, which lists of plugins do without

    held, made = Held(), dict[int, Tensor]()
    for part in parts:
        kinds: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for tensors in kinds:
            for name, tensor in tensors.items():
                if tensor is None or tensor.dtype not in HALVES or isinstance(tensor, DTensor):
                    continue
                held.append((tensors, name, tensor))
                if id(tensor) not in made:  # a tied one is widened once
                    table = tables and tensor.dim() == 2 and tensor.layout == torch.strided
                    wide = _Table(tensor.detach()) if table else tensor.detach().float()
                    made[id(tensor)] = nn.Parameter(wide, False) if tensors is part._parameters else wide
    for tensors, name, tensor in held:
        tensors[name] = made[id(tensor)]
        if not isinstance(made[id(tensor)], _Table):
            _half_of[made[id(tensor)].untyped_storage().data_ptr()] = tensor
            _wide_of[id(tensor)] = made[id(tensor)]
    return held


def _restore(held: Held) -> None:
    while held:
        tensors, name, tensor = held.pop()
        if not isinstance(tensors[name], _Table):
            _half_of.pop(tensors[name].untyped_storage().data_ptr(), None)
            _wide_of.pop(id(tensor), None)
        tensors[name] = tensor


def flash_of(model: Any) -> str | None:
    """Return the name of the flash attention of a transformers model; None if it uses another attention."""
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return implementation if isinstance(implementation, str) and "flash" in implementation else None


@contextmanager
def _without_flash(model: Any) -> Iterator[None]:
    """Replace flash attention of a transformers model, which needs half precision, by torch's own attention."""
    implementation = flash_of(model)
    if implementation is None:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
