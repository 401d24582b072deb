"""Folding LoRA into the base weights, and taking it out again; all layers or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ftengine.errors import NotMergeable
from ftengine_builtins.strategies.lora_inject import lora_layers, remove, restore
from ftengine_builtins.strategies.lora_layers import DenseLora

MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Removed = dict[str, dict[str, Any]]
"""What `unmerge_all` needs: by path, what `remove` returned."""


def merge_all(module: nn.Module) -> Removed:
    """Fold every LoRA layer's update into its base weight and restore the original layers.

    Raises:
        NotMergeable: a base weight is quantised or computed, or another module holds it too.
    """
    holders: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(f"{path}.{name}")
    layers = lora_layers(module)
    for path, layer in layers.items():
        weight = layer._parameters.get("weight")
        if not isinstance(layer, DenseLora) or weight is None or weight.dtype not in MERGEABLE:
            kind = "computed" if weight is None else str(weight.dtype)[6:]
            raise NotMergeable(
                f"{path!r} is a {layer.lora_base.__name__} with {kind} weights; LoRA merges only into plain layers "
                "with float weights. Serve the base with the adapter, or merge the adapter into an unquantised copy of "
                "the base with PEFT (merge_and_unload)."
            )
        others = [name for name in holders[id(weight)] if name != f"{path}.weight"]
        if others:
            raise NotMergeable(
                f"'{path}.weight' is tied to {', '.join(map(repr, others))}; merging would change both. "
                "Serve the base with the adapter, or untie the weights of the base first."
            )
    removed = {}
    for path, layer in layers.items():
        layer.fold()
        removed[path] = remove(layer)
    return removed


def unmerge_all(module: nn.Module, removed: Removed) -> None:
    """Make the layers LoRA layers again, their base weights what they were up to one rounding a merge."""
    for path, state in removed.items():
        layer = module.get_submodule(path)
        restore(layer, state)
        layer.unfold()
