"""What LoRA asks of layers and patterns before it adapts any."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from ftengine.errors import NoMatch, NotMergeable, RecipeError
from ftengine.model import matching
from ftengine_builtins.strategies.expert_layers import experts_per_token
from ftengine_builtins.strategies.lora_layers import (
    DenseLoRA,
    LoRALayer,
    LoRALinear,
    lora_class,
    starts_from_weight,
)

if TYPE_CHECKING:
    from ftengine_builtins.strategies.lora import LoRAConfig

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights that an update can be added to."""


def matches(pattern: str, path: str) -> bool:
    """Say whether a pattern is the path, or its ending after a dot, as in PEFT's rank_pattern."""
    return bool(matching([path], rf"(.*\.)?({pattern})", full_match=True))


def first_matches(patterns: Collection[str], paths: list[str]) -> dict[str, str | None]:
    """Return for each path the first pattern that matches it."""
    return {path: next((p for p in patterns if matches(p, path)), None) for path in paths}


def require_effect(option: str, patterns: Collection[str], paths: list[str]) -> None:
    """Check that each pattern is the first to match some layer."""
    first = first_matches(patterns, paths)
    for pattern in patterns:
        matched = [path for path in paths if matches(pattern, path)]
        if not matched:
            raise NoMatch(
                f"{option} {pattern!r} matches none of the {len(paths)} layers that strategy.targets takes, "
                f"e.g. {paths[0]!r}. Correct it or leave it out."
            )
        if pattern not in first.values():
            raise NoMatch(
                f"{option} {pattern!r} has no effect: each layer that it matches, e.g. {matched[0]!r}, matches an "
                f"earlier pattern, {first[matched[0]]!r}, which counts. Put it before that one, or leave it out."
            )


def set_expert_ranks(config: LoRAConfig, module: nn.Module, paths: list[str]) -> None:
    """Write `expert_rank` as ranks of the experts' parameters at `paths`, which files know."""
    rank, config.expert_rank = config.expert_rank, None
    for path in paths if rank is not None else ():
        if not any(matches(pattern, path) for pattern in config.rank_pattern):
            number = _split(config.rank, module) if rank == "split" else rank
            pattern = re.escape(".".join(path.split(".")[-2:]))
            config.rank_pattern = {**config.rank_pattern, pattern: number}


def _split(rank: int, module: nn.Module) -> int:
    """Return the rank of each expert where all that a token passes have `rank` together (RecipeError: not even 1)."""
    each = experts_per_token(module)
    if each is None:
        raise RecipeError(
            f"strategy.expert_rank is 'split', but the configuration of {type(module).__name__} does not say how many "
            "experts a token passes. Set strategy.expert_rank to a number."
        )
    if rank < each:
        raise RecipeError(
            f"strategy.expert_rank is 'split', and strategy.rank {rank} is less than the {each} experts that a token "
            f"passes. Set strategy.rank to {each} or more, or strategy.expert_rank to 1."
        )
    return rank // each


def require_plain(path: str, config: LoRAConfig) -> None:
    """Refuse options that have no form for experts and routers (RecipeError)."""
    for option, value in (("dora", config.dora), ("init", starts_from_weight(config.init) and config.init)):
        if value:
            raise RecipeError(
                f"strategy.{option} {value!r} is for single weights, but {path!r} belongs to a mixture of experts, "
                f"where PEFT has no file for it. Leave {option} out, or set strategy.targets=attention."
            )


def require_fit(path: str, layer: nn.Module, config: LoRAConfig) -> None:
    """Check that a layer has the weights that DoRA or an initialisation needs, and no lower rank of its own."""
    cls, weight, rank = lora_class(layer), getattr(layer, "weight", None), config.layer(path)[0]
    plain = issubclass(cls, DenseLoRA) and weight is not None and weight.dtype in PLAIN
    what = f"{path!r} is a {type(layer).__name__}"
    if config.dora and not plain:
        raise RecipeError(
            f"strategy.dora needs the norms of float weights, but {what} whose weights are packed or used in another "
            "way. Set strategy.dora=false, leave that layer out of strategy.targets, or set model.source to an "
            "unquantised copy of the base."
        )
    if not starts_from_weight(config.init):
        return
    if not (plain and issubclass(cls, LoRALinear)):
        raise RecipeError(
            f"strategy.init {config.init!r} decomposes the float weights of Linear and Conv1D layers, but {what}. "
            "Use kaiming or gaussian, or leave that layer out of strategy.targets."
        )
    if rank > min(weight.shape):
        raise RecipeError(
            f"strategy.init {config.init!r} starts from singular vectors of the weight, and {path!r} has only "
            f"{min(weight.shape)} of them, but rank {rank}. Lower strategy.rank, or set a lower one for it in "
            "strategy.rank_pattern."
        )


def require_mergeable(path: str, layer: LoRALayer, holders: Mapping[int, list[str]]) -> None:
    weight = layer._parameters.get("weight")
    if not isinstance(layer, DenseLoRA) or weight is None or weight.dtype not in PLAIN:
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
