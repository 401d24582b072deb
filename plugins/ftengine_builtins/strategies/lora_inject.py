"""Turning layers into LoRA layers and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ftengine_builtins.strategies import lora_initial
from ftengine_builtins.strategies.lora_dora import DoraLayer
from ftengine_builtins.strategies.lora_layers import LoraConv1D, LoraConv2d, LoraEmbedding, LoraLayer, LoraLinear

DENSE = {
    nn.Linear.forward: LoraLinear,
    Conv1D.forward: LoraConv1D,
    nn.Conv2d.forward: LoraConv2d,
    nn.Embedding.forward: LoraEmbedding,
}
"""Layers whose weight is used as it stands; a subclass with a forward of its own may do anything with it."""

_TENSORS = ("lora_a", "lora_b", "lora_magnitude", "lora_a0", "lora_b0")


@dataclass(frozen=True)
class Settings:
    """What one layer's update is.

    Args:
        rank: r.
        scale: what the update is multiplied by.
        dropout: probability that an input of the update is dropped in training mode.
        init: one of `lora_initial.ALLOWED`.
        dora: whether the magnitude is tuned apart.
    """

    rank: int
    scale: float
    dropout: float = 0.0
    init: str = "kaiming"
    dora: bool = False


def kind(layer: nn.Module) -> type[LoraLayer] | None:
    """Return how LoRA adapts a layer, or None where it cannot."""
    dense = DENSE.get(type(layer).forward)
    if dense is not None:
        return dense
    if isinstance(layer, nn.Embedding):
        return LoraEmbedding if hasattr(layer, "embed_scale") else None  # Bart's, Gemma's; others look up unknown rows
    if isinstance(layer, (nn.Linear, Conv1D)):
        return LoraLayer  # a forward of its own (quantised, scaled, …) is kept
    n_in, n_out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    is_leaf = next(layer.children(), None) is None
    return LoraLayer if is_leaf and isinstance(n_in, int) and isinstance(n_out, int) else None


def is_linear(layer: nn.Module) -> bool:
    """Say whether a layer is a Linear, a Conv1D or a quantised linear layer."""
    found = kind(layer)
    return found is LoraLayer or (found is not None and issubclass(found, LoraLinear))


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """Return the adapted layers by path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def inject(layer: nn.Module, settings: Settings) -> None:
    """Turn a layer into a LoRA layer whose output is, up to rounding, still the frozen layer's.

    A and B are float32 whatever the base holds, because bfloat16 swallows small updates.

    Args:
        layer: one that `kind` knows.
        settings: of its update.
    """
    how = kind(layer)
    a_shape, b_shape = how.lora_shapes(layer, settings.rank)
    device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    # Drawn on the CPU, so that one seed gives one A on every kind of device.
    drawn = "meta" if device.type == "meta" else "cpu"
    a, b = (torch.zeros(shape, dtype=torch.float32, device=drawn) for shape in (a_shape, b_shape))
    if how is LoraEmbedding:
        nn.init.normal_(b)  # as in the reference implementation: here A is zero, so that rare rows start unchanged
    else:
        {"gaussian": lora_initial.gaussian}.get(settings.init, lora_initial.kaiming)(a)
    layer.__class__ = _lora_class(type(layer), how, settings.dora)
    layer.lora_a, layer.lora_b = nn.Parameter(a.to(device)), nn.Parameter(b.to(device))
    layer.lora_scale, layer.lora_dropout = settings.scale, settings.dropout
    layer.register_buffer("lora_a0", None)
    layer.register_buffer("lora_b0", None)
    layer.register_parameter("lora_magnitude", None)
    _start_from_weight(layer, settings)
    if settings.dora:
        layer.lora_magnitude = nn.Parameter(layer.norm().float())


def remove(layer: LoraLayer) -> dict[str, Any]:
    """Make a LoRA layer what it was before `inject`, and return what `restore` needs to undo that."""
    names = [*_TENSORS, *(name for name in vars(layer) if name.startswith("lora_"))]
    state = {"class": type(layer), **{name: getattr(layer, name) for name in names}}
    for name in names:
        delattr(layer, name)
    layer.__class__ = layer.lora_base
    return state


def restore(layer: nn.Module, state: dict[str, Any]) -> None:
    """Make a layer the LoRA layer that `remove` found."""
    layer.__class__ = state["class"]
    for name, value in state.items():
        if name in ("lora_a0", "lora_b0"):
            layer.register_buffer(name, value)
        elif name in _TENSORS:
            layer.register_parameter(name, value)
        elif name != "class":
            setattr(layer, name, value)


@torch.no_grad()
def _start_from_weight(layer: LoraLayer, settings: Settings) -> None:
    decompose = lora_initial.decomposition(settings.init)
    if decompose is None:
        return
    if not layer.lora_a.is_meta:
        a, b = decompose(layer.matrix(), settings.rank, settings.scale)
        layer.lora_a.copy_(a)
        layer.lora_b.copy_(b)
    layer.lora_a0, layer.lora_b0 = _constant(layer.lora_a), -_constant(layer.lora_b)


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


@functools.cache
def _lora_class(base: type[nn.Module], how: type[LoraLayer], dora: bool) -> type[LoraLayer]:
    bases = (DoraLayer, how, base) if dora else (how, base)
    return type(f"{'Dora' if dora else 'Lora'}{base.__name__}", bases, {"lora_base": base})
