"""LoRA on one layer: y = frozen(x) + scale · (dropout(x) Aᵀ) Bᵀ (Hu et al. 2021, arXiv:2106.09685).

A layer is adapted where it stands: it changes its class to a subclass of its own and gains two
parameters, as torch.nn.utils.parametrize does. Base weights keep their names, whatever reads
`layer.weight` still finds it, and taking LoRA away leaves the very module that was there before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ftengine.errors import NotMergeable
from ftengine.ops import lowrank_add, lowrank_linear, lowrank_merge_

MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class LoraLayer(nn.Module):
    """Any frozen layer with a low-rank update on its output; its weights may be packed in any way."""

    lora_base: ClassVar[type[nn.Module]]
    lora_a: nn.Parameter  # (r, in)
    lora_b: nn.Parameter  # (out, r)
    lora_scale: float
    lora_dropout: float

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(x, *args, **kwargs)
        return lowrank_add(y, x, self.lora_a, self.lora_b, self.lora_scale, self._dropout())

    def _dropout(self) -> float:
        return self.lora_dropout if self.training else 0.0


class LoraLinear(LoraLayer):
    """A dense linear layer: base and update in one operation."""

    def forward(self, x: Tensor) -> Tensor:
        return lowrank_linear(x, self.weight, self.bias, self.lora_a, self.lora_b, self.lora_scale, self._dropout())

    @torch.no_grad()
    def fold(self) -> None:
        """Add the update to the base weight in place."""
        lowrank_merge_(self.weight, self.lora_a, self.lora_b, self.lora_scale)


class LoraConv1D(LoraLinear):
    """GPT-2's linear layer, which stores its weight as (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        return lowrank_linear(x, self.weight.t(), self.bias, self.lora_a, self.lora_b, self.lora_scale, self._dropout())

    @torch.no_grad()
    def fold(self) -> None:
        # (B A)ᵀ = Aᵀ Bᵀ: transposing the small factors leaves the large weight where it is.
        lowrank_merge_(self.weight, self.lora_b.t().contiguous(), self.lora_a.t().contiguous(), self.lora_scale)


def features(layer: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a layer that LoRA can adapt: Linear, Conv1D, a quantised linear layer; else None."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    n_in, n_out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    is_leaf = next(layer.children(), None) is None
    return (n_in, n_out) if is_leaf and isinstance(n_in, int) and isinstance(n_out, int) else None


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """Return the adapted layers by path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def inject(layer: nn.Module, rank: int, scale: float, dropout: float, initialise: Callable[[Tensor], object]) -> None:
    """Turn a layer into a LoRA layer; until B moves, its output is the frozen layer's.

    A and B are float32 whatever the base holds, because bfloat16 swallows small updates.

    Args:
        layer: one that `features` knows.
        rank: r.
        scale: what the update is multiplied by.
        dropout: probability that an input of the update is dropped in training mode.
        initialise: fills A, (r, in), in place; B starts at zero.
    """
    n_in, n_out = features(layer)
    device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    # Drawn on the CPU, so that one seed gives one A on every kind of device.
    a = torch.empty(rank, n_in, dtype=torch.float32, device="meta" if device.type == "meta" else "cpu")
    initialise(a)
    layer.__class__ = _lora_class(type(layer))
    layer.lora_a = nn.Parameter(a.to(device))
    layer.lora_b = nn.Parameter(torch.zeros(n_out, rank, dtype=torch.float32, device=device))
    layer.lora_scale, layer.lora_dropout = scale, dropout


def remove(layer: LoraLayer) -> None:
    """Make a LoRA layer what it was before `inject`."""
    for name in ("lora_a", "lora_b", "lora_scale", "lora_dropout"):
        delattr(layer, name)
    layer.__class__ = layer.lora_base


def merge_all(module: nn.Module) -> None:
    """Fold every LoRA layer's update into its base weight and restore the original layers; all or none.

    Raises:
        NotMergeable: a base weight is quantised or computed, or another module holds it too.
    """
    holders: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(f"{path}.{name}")
    dense: list[LoraLinear] = []
    for path, layer in lora_layers(module).items():
        weight = layer._parameters.get("weight")
        if not isinstance(layer, LoraLinear) or weight is None or weight.dtype not in MERGEABLE:
            kind = "computed" if weight is None else str(weight.dtype)[6:]
            raise NotMergeable(
                f"{path!r} is a {layer.lora_base.__name__} with {kind} weights; LoRA merges only into plain layers "
                "with float weights. Load the base dequantised and merge there."
            )
        others = [name for name in holders[id(weight)] if name != f"{path}.weight"]
        if others:
            raise NotMergeable(
                f"'{path}.weight' is tied to {', '.join(map(repr, others))}; merging would change both. "
                "Serve the base with the adapter, or untie the weights of the base first."
            )
        dense.append(layer)
    for layer in dense:
        layer.fold()
        remove(layer)


def kaiming(a: Tensor) -> None:
    """Initialise A as PEFT and the reference implementation do."""
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))


def gaussian(a: Tensor) -> None:
    """Initialise A from a normal distribution with standard deviation 1/r."""
    nn.init.normal_(a, std=1 / a.shape[0])


@functools.cache
def _lora_class(base: type[nn.Module]) -> type[LoraLayer]:
    # A subclass of Linear with a forward of its own (quantised, scaled, …) keeps that forward.
    kinds = {nn.Linear.forward: LoraLinear, Conv1D.forward: LoraConv1D}
    return type(f"Lora{base.__name__}", (kinds.get(base.forward, LoraLayer), base), {"lora_base": base})
