"""Support of methods for bases with packed 4-bit or 8-bit weights, tested on a single layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn

from ftengine.errors import RecipeError

NAMING: dict[str, Any] = {
    "exclude_modules": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "feedforward_modules": [],
}
NAMING |= {"rank_pattern": {}, "alpha_pattern": {}}
"""Options that name modules, as they are for a model of one layer."""


def packed_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers whose weights are not floats, by path."""
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    return {path: layer for path, layer in layers.items() if not layer.weight.is_floating_point()}


def require_no_values(name: str, config: PeftConfig, packed: dict[str, nn.Linear], adapted: Iterable[str]) -> None:
    """Refuse a method that needs float weights for layers that are packed (RecipeError).

    Args:
        name: name of the strategy.
        config: PEFT's configuration.
        packed: the result of `packed_layers`.
        adapted: paths of the adapted layers.
    """
    paths = [path for path in adapted if path in packed]
    if paths and not _trains_beside(min((packed[path] for path in paths), key=_size), config):
        layer = packed[paths[0]]
        kind = f"{type(layer).__name__} of {type(layer).__module__.partition('.')[0]}"
        raise RecipeError(
            f"strategy {name!r}, with these options, needs weights as they are, and those of {len(paths):,} layers "
            f"are packed, such as {paths[0]!r} ({kind}, {str(layer.weight.dtype)[6:]}). Set model.loader to auto, or "
            "take a strategy that leaves weights as they are, such as lora or peft-oft."
        )


def _trains_beside(layer: nn.Linear, config: PeftConfig) -> bool:
    """Return whether a method trains on a layer, and computes the same whatever codes stand for the weights."""
    shape, dtype, sizes = tuple(layer.weight.shape), layer.weight.dtype, (layer.in_features, layer.out_features)
    try:
        zeros, other = (_trial(_Packed(*sizes, torch.full(shape, code, dtype=dtype)), config) for code in (0, 7))
    except Exception:  # whatever PEFT or torch raises
        with suppress(Exception):  # some do not work on a model as small, whatever its weights
            _trial(nn.Linear(*sizes), config)
            return False
        return True
    return all(x.equal(y) for x, y in zip(zeros, other, strict=True))


class _Packed(nn.Linear):
    """A layer that computes without its codes (any shape, integers), so that nobody but a method reads them."""

    def __init__(self, in_features: int, out_features: int, codes: Tensor) -> None:
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True).repeat_interleave(self.out_features, -1)


def _trial(linear: nn.Linear, config: PeftConfig) -> list[Tensor]:
    """Return what a method starts with on a layer, and output and gradient after it was moved from there."""
    own: Any = copy.deepcopy(config)
    own.target_modules = ["0"]
    for option, value in NAMING.items():
        if hasattr(own, option):
            setattr(own, option, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(nn.Sequential(linear), own).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in trained]
        with torch.no_grad():
            for parameter in trained:
                parameter.normal_(std=0.1)
        x = torch.randn(2, linear.in_features, requires_grad=True)
        y = model.get_base_model()(x)
        y.sum().backward()
    assert x.grad is not None
    if not any(p.grad is not None and p.grad.any() for p in trained):
        raise ArithmeticError("no trained part gets a gradient")
    return [*start, y.detach(), x.grad]


def _size(layer: nn.Linear) -> int:
    return layer.in_features * layer.out_features
