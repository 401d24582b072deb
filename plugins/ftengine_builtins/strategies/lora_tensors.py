"""What an adapter file holds, by PEFT's names: A and B of each layer, DoRA's magnitudes, and whole modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch
from ftengine.model import copy_into
from ftengine_builtins.strategies.lora_inject import lora_layers
from ftengine_builtins.strategies.lora_layers import LoraEmbedding, LoraLayer
from ftengine_builtins.strategies.peft_format import PREFIX
from ftengine_builtins.strategies.targets import whole_modules

_BASE = ".base_layer.weight"


def contents(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the tensors by key; those of a layer that started from its weight are copies, else the model's own."""
    tensors: dict[str, Tensor] = {}
    for path, layer in lora_layers(loaded.module).items():
        key_a, key_b = _keys(path, layer)
        tensors[key_a], tensors[key_b] = layer.lora_factors()
        if layer.lora_magnitude is not None:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = layer.lora_magnitude
    for path in whole_modules(loaded):
        for name, tensor in loaded.module.get_submodule(path).state_dict().items():
            tensors[f"{PREFIX}{path}.{name}"] = tensor
    return tensors


@torch.no_grad()
def fill(loaded: LoadedModel, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy an adapter's tensors into a prepared model, all or none.

    Args:
        loaded: the model.
        tensors: by PEFT's keys.
        origin: where they come from, for the message.

    Raises:
        BaseMismatch: keys are missing or unexpected, a shape differs, or the file holds another base embedding.
    """
    layers = lora_layers(loaded.module)
    targets = contents(loaded)
    copy_into(targets, _without_base(tensors, layers, origin), origin)
    for path, layer in layers.items():
        if layer.lora_a0 is None:
            continue
        (a, b), rank = (targets[key] for key in _keys(path, layer)), layer.lora_a.shape[0]
        layer.lora_a.copy_(a[:rank])
        layer.lora_a0.copy_(a[rank:])
        layer.lora_b.copy_(b[:, :rank])
        layer.lora_b0.copy_(b[:, rank:])


def _keys(path: str, layer: LoraLayer) -> tuple[str, str]:
    names = ("embedding_A", "embedding_B") if isinstance(layer, LoraEmbedding) else ("A.weight", "B.weight")
    a, b = (f"{PREFIX}{path}.lora_{name}" for name in names)
    return a, b


def _without_base(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], origin: str) -> dict[str, Tensor]:
    """Leave out the base's own embeddings, which PEFT saves beside an adapted one."""
    kept = dict(tensors)
    for key in tensors:
        path = key.removeprefix(PREFIX).removesuffix(_BASE)
        if not key.endswith(_BASE) or path not in layers:
            continue
        stored, weight = kept.pop(key), layers[path].weight
        same = stored.shape == weight.shape
        if same and not weight.is_meta:
            same = torch.equal(stored.to(weight.dtype), weight.cpu())
        if not same:
            raise BaseMismatch(
                f"{origin} holds weights of {path!r} that differ from this base's: its vocabulary was extended, or it "
                "was trained on another base. Merge that adapter with PEFT and start from the merged model."
            )
    return kept
