"""LoRA's options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ftengine.api import Config
from ftengine.errors import RecipeError, naming
from ftengine_builtins.strategies import lora_initial, peft_format
from ftengine_builtins.strategies.targets import ALL_LINEAR


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _targets(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("write all-linear, a regular expression for whole module paths, or a list of module names")
    return _compiled(value) if isinstance(value, str) else value


def _patterns(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("write a mapping from module names (or regular expressions for endings of paths) to numbers")
    return {_compiled(pattern): number for pattern, number in value.items()}


def _init(value: Any) -> Any:
    if not isinstance(value, str) or not lora_initial.PATTERN.fullmatch(value):
        raise ValueError(f"allowed: {lora_initial.ALLOWED}")
    return value


Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LoraConfig(Config):
    """Options of LoRA."""

    rank: Rank = Field(8, description="rank of the update")
    alpha: Alpha = Field(16, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the update's input while training")
    targets: Annotated[str | list[str], BeforeValidator(_targets)] = Field(
        ALL_LINEAR,
        description="all-linear; a regular expression for whole module paths; or a list of module names or paths",
    )
    rank_pattern: Annotated[dict[str, Rank], BeforeValidator(_patterns)] = Field(
        {}, description="ranks of single layers, by name or regular expression; the first that matches counts"
    )
    alpha_pattern: Annotated[dict[str, Alpha], BeforeValidator(_patterns)] = Field(
        {}, description="alphas of single layers, likewise"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023)")
    dora: bool = Field(False, description="tune the weights' magnitudes apart from their directions (Liu et al. 2024)")
    init: Annotated[str, BeforeValidator(_init)] = Field(
        "kaiming",
        description="how A starts: kaiming or gaussian; or how A and B start from the weight itself: pissa, "
        "pissa_niter_N (fast, with N iterations) or olora",
    )
    lr_ratio: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="learning rate of B over that of A (LoRA+, Hayou et al. 2024)"
    )
    start_from: str | None = Field(
        None, description="folder of a PEFT LoRA adapter to continue; it sets rank, alpha, targets and the like"
    )

    @model_validator(mode="after")
    def _follow_start_from(self) -> LoraConfig:
        if self.start_from is None:
            return self
        if lora_initial.decomposition(self.init) is not None:
            raise RecipeError(
                f"strategy.init is {self.init!r}, which starts from the base's weights, and strategy.start_from is "
                f"{self.start_from!r}. Leave one of them out."
            )
        with naming("strategy.start_from"):
            adapter = peft_format.read_config(Path(self.start_from))
        for key in peft_format.SHARED:
            ours, theirs = getattr(self, key), getattr(adapter, key)
            if key in self.model_fields_set and _comparable(ours) != _comparable(theirs):
                raise RecipeError(
                    f"strategy.{key} is {ours!r}, but the adapter in strategy.start_from ({self.start_from!r}) "
                    f"has {theirs!r}. Leave {key} out, or start without that adapter."
                )
            setattr(self, key, theirs)
        if "dropout" not in self.model_fields_set:
            self.dropout = adapter.dropout
        return self

    @property
    def scale(self) -> float:
        """What the update is multiplied by where no pattern says otherwise."""
        return self.scaled(self.rank, self.alpha)

    def scaled(self, rank: int, alpha: float) -> float:
        """Return what the update of a layer is multiplied by."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def layer(self, path: str) -> tuple[int, float]:
        """Return rank and scale of the layer at `path`: the first pattern that matches counts, as in PEFT."""
        rank = next((r for pattern, r in self.rank_pattern.items() if matches(pattern, path)), self.rank)
        alpha = next((x for pattern, x in self.alpha_pattern.items() if matches(pattern, path)), self.alpha)
        return rank, self.scaled(rank, alpha)


def matches(pattern: str, path: str) -> bool:
    """Say whether a pattern is the path or an ending of it that follows a dot, as PEFT's rank_pattern is matched."""
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _comparable(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value
