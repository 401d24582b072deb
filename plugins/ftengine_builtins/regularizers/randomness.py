"""Sources of randomness in a training model: dropout of all kinds, and noise of regularizers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from torch import nn

from ftengine.api import LoadedModel
from ftengine.model import drops
from ftengine_builtins.strategies.targets import inside

NOISY: WeakSet[nn.Module] = WeakSet()
"""Modules to which a regularizer adds randomness."""

DROPS = re.compile(r"drop(out)?", re.IGNORECASE)
"""Names of attributes that hold a probability of dropout: attention_dropout, dropout_prob, attn_pdrop, drop_rate."""
OTHER = re.compile(r"layer|path|block|connect|lora", re.IGNORECASE)
"""Names that drop something other than activations of the model itself, such as whole layers."""

BRANCHES = re.compile(r"drop.?path|stochastic.?depth", re.IGNORECASE)
"""Classes or paths of modules that drop whole branches (stochastic depth), whatever the name of their attribute."""


@dataclass(frozen=True)
class Place:
    """An attribute of a module or config with a dropout probability; `added` if the strategy added it."""

    owner: Any
    attribute: str
    added: bool

    @property
    def probability(self) -> float:
        return getattr(self.owner, self.attribute)


def dropouts(loaded: LoadedModel) -> list[Place]:
    """Return all dropout probabilities in a model's modules, attention's included, without stochastic depth."""
    places = []
    for path, module in loaded.module.named_modules():
        if BRANCHES.search(type(module).__name__) or BRANCHES.search(path):
            continue
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else _attributes(module)
        places += [Place(module, name, name.startswith("lora_") or _is_added(loaded, path)) for name in names]
    return places


def config_dropouts(loaded: LoadedModel) -> list[Place]:
    """Return the dropout probabilities in configs, which a few modules read during the forward pass."""
    candidates = (getattr(module, "config", None) for module in loaded.module.modules())
    configs = {id(config): config for config in candidates if hasattr(config, "to_dict")}
    return [Place(config, name, False) for config in configs.values() for name in _attributes(config)]


def is_random(loaded: LoadedModel) -> bool:
    """Return whether two passes over one batch differ in training mode."""
    return any(module in NOISY or drops(module) for module in loaded.module.modules())


def _attributes(owner: Any) -> Iterator[str]:
    for name, value in list(vars(owner).items()):
        if DROPS.search(name) and (name == "lora_dropout" or not OTHER.search(name)) and _is_probability(value):
            yield name


def _is_probability(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _is_added(loaded: LoadedModel, path: str) -> bool:
    """Return whether the nearest module around a path with parameters has none of the base's."""
    while True:
        below = f"{path}." if path else ""
        names = [name for name, _ in loaded.module.named_parameters() if name.startswith(below)]
        if names:
            return not any(name in loaded.pretrained or inside(name, loaded.new_modules) for name in names)
        if not path:
            return False
        path = path.rpartition(".")[0]
