"""LoRA layers that read one input, such as q, k and v, computed together by ftengine.ops.lowrank_linears.

Groups are found by the layers' names, so that a forward pass and its repetition under activation checkpointing use the
same groups. At run time, a layer that is called with another tensor computes alone.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ftengine.api import FastPath, FastPathTraits, LoadedModel, TrainingContext
from ftengine.ops import lowrank_linears
from ftengine_builtins.strategies.lora_layers import DoRA, LoRALinear

SHARED = (
    ("q_proj", "k_proj", "v_proj"),  # Llama and its relatives, BART
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),  # BERT, ViT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # T5
    ("wi_0", "wi_1"),
    ("w1", "w3"),  # Mixtral
)
"""Names of siblings that transformers' models give one input."""
CROSS = re.compile("cross|encoder_attn|encdec", re.IGNORECASE)
"""Names of attention whose keys and values come from an encoder."""


class Group:
    """Layers of one input: the first call computes all outputs, the other layers take theirs.

    Outputs are kept from the first call to the last of a round. The output of a layer that is not called is dropped
    with the next round, or with the input.
    """

    def __init__(self, layers: Sequence[LoRALinear]) -> None:
        self.layers = tuple(layers)
        self._waiting: tuple[weakref.ref[Tensor], tuple[Any, ...], dict[int, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "_waiting": None}

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return a layer's output, computed together with the others' if possible."""
        y = self.output(layer, x) if isinstance(layer, LoRALinear) else None  # it may have been merged meanwhile
        return type(layer).forward(layer, x) if y is None else y

    def output(self, layer: LoRALinear, x: Tensor) -> Tensor | None:
        """Return a layer's output for x; None if it must compute alone."""
        # A traced graph would hold what waits, and changes of an inference tensor cannot be told.
        if torch.compiler.is_compiling() or x.is_inference():
            return None
        state, waiting, key = self._state(layer, x), self._waiting, id(layer)
        if waiting is not None and key in waiting[2]:
            source, before, ys = waiting
            y = ys.pop(key)
            if not ys:
                self._waiting = None
            return y if source() is x and before == state else None
        if all(layer is not own for own in self.layers) or any(own.lora_p != layer.lora_p for own in self.layers):
            return None
        operands = [(own.lora_matrix, own.bias, own.lora_a, own.lora_b, own.lora_scale) for own in self.layers]
        computed = lowrank_linears(x, *zip(*operands, strict=True), layer.lora_p)
        ys = {id(own): y for own, y in zip(self.layers, computed, strict=True)}
        y = ys.pop(key)
        self._waiting = weakref.ref(x, self._forget), state, ys
        return y

    @staticmethod
    def _state(layer: LoRALinear, x: Tensor) -> tuple[Any, ...]:
        """Return everything besides x and the layer's tensors that an output depends on."""
        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else None
        return x._version, layer.lora_p, torch.is_grad_enabled(), dtype

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if self._waiting is not None and self._waiting[0] is source:
            self._waiting = None


class GroupedLayers(FastPath):
    """LoRA layers that read one input (q, k and v; gate and up) computed together; they share its dropout mask."""

    name = "grouped-layers"
    traits = FastPathTraits(supports_sharding=True, draws_randomness=True)

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        groups = [Group(layers) for layers in layers_of_one_input(loaded.module)]
        try:
            for group in groups:
                for layer in group.layers:
                    layer.forward = partial(group.forward, layer)
            yield {"groups of layers": len(groups)} if groups else None
        finally:
            for layer in (layer for group in groups for layer in group.layers):
                vars(layer).pop("forward", None)


def layers_of_one_input(module: nn.Module) -> Iterator[list[LoRALinear]]:
    """Yield LoRA layers of one input, group by group."""
    for path, parent in module.named_modules():
        children = dict(parent.named_children())
        for names in SHARED if not CROSS.search(path.rpartition(".")[2]) else ():
            members = [layer for name in names if _groupable(layer := children.get(name))]
            if len(members) > 1 and len({layer.lora_a.shape[1] for layer in members}) == 1:
                yield members


def _groupable(layer: nn.Module | None) -> TypeGuard[LoRALinear]:
    plain = isinstance(layer, LoRALinear) and not isinstance(layer, DoRA) and layer.lora_a0 is None
    return plain and "forward" not in vars(layer)  # another fast path's
