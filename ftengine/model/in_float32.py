"""Computing in float32 for a while, for checks that must distinguish faults from rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)
"""Dtypes that lose numbers: bfloat16 has 3 digits, and of years no difference would be left; float16 ends at 65,504."""

Held = list[tuple[dict[str, Any], str, Tensor]]
"""Weights of half precision that float32 stands in for: whose they are, under which name."""

_half_of, _wide_of = dict[int, Tensor](), dict[int, Tensor]()
"""Weights of half precision by the address of the copy that stands in for them at the moment; copies by the weight."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within the block, let a model compute in float32, without autocast and flash attention.

    Weights of half precision are converted when they are used; the model's own stay unchanged. To save memory, those of
    a block (a member of a module list) and of an embedding are converted only while it computes, and again where a
    backward pass needs them; others, such as the output head's, for the whole time (of a sharded model, while it
    computes). Packed integers stay as they are: their layers unpack to the dtype of their input.

    A model that uses a block's weights from outside, without calling the block, raises torch's error of different
    dtypes.
    """
    blocks = [*module_blocks(model), *_embeddings(model)]
    inside = {part for block in blocks for part in block.modules()}
    rest = [part for part in model.modules() if part not in inside]
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_pack, _unpack))
        stack.enter_context(_without_flash(model))
        stack.callback(_restore, _widen(rest))
        for unit, parts in ((model, rest), *((block, list(block.modules())) for block in blocks)):
            held = Held()
            stack.callback(_restore, held)  # an error inside leaves it widened
            for handle in (
                unit.register_forward_pre_hook(lambda *_, held=held, parts=parts: held.extend(_widen(parts))),
                # Before FSDP takes its weights away, as after it gave them.
                unit.register_forward_hook(lambda *_, held=held: _restore(held), prepend=True),
            ):
                stack.callback(handle.remove)
        yield


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


def _embeddings(model: nn.Module) -> list[nn.Module]:
    """Return the token embeddings; [] if they are unknown, part of a block, or share their table.

    Other tables, such as DeBERTa's of relative positions, are read without being called.
    """
    getter = getattr(model, "get_input_embeddings", None)
    try:
        table = None if getter is None else getter()
    except (AttributeError, NotImplementedError):
        table = None
    if not isinstance(table, nn.Embedding):
        return []
    uses = sum(p is table.weight for part in model.modules() for p in part._parameters.values())
    inside = any(part is table for block in module_blocks(model) for part in block.modules())
    return [table] if uses == 1 and not inside else []


def _widen(parts: Iterable[nn.Module]) -> Held:
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
                    wide = tensor.detach().float()
                    made[id(tensor)] = nn.Parameter(wide, False) if tensors is part._parameters else wide
    for tensors, name, tensor in held:
        tensors[name] = made[id(tensor)]
        _half_of[made[id(tensor)].untyped_storage().data_ptr()], _wide_of[id(tensor)] = tensor, made[id(tensor)]
    return held


def _restore(held: Held) -> None:
    while held:
        tensors, name, tensor = held.pop()
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
