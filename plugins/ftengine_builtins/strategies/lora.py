"""LoRA as a strategy: options, target layers, the optimiser's groups, PEFT's format, merging."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from torch import nn

from ftengine.api import Config, LoadedModel, Strategy, StrategyTraits, usual
from ftengine.errors import NoMatch, NotMergeable, RecipeError, RunError
from ftengine.model import ModuleNames, matching, regex
from ftengine.ops import active_backend
from ftengine.text import counted
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.adapter_config import follow, require_base_of, require_same
from ftengine_builtins.strategies.lora_layers import (
    INIT_PATTERN,
    INITIALISATIONS,
    DenseLoRA,
    LoRAConv1D,
    LoRAEmbedding,
    LoRALayer,
    LoRALinear,
    add_lora,
    lora_class,
    lora_layers,
    remove_lora,
    starts_from_weight,
)
from ftengine_builtins.strategies.peft_format import LoRAFile
from ftengine_builtins.strategies.targets import ALL_LINEAR, freeze_base, param_groups, select

PATTERNS = ("rank_pattern", "alpha_pattern")

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights that an update can be added to."""


def _init(value: Any) -> Any:
    if not isinstance(value, str) or not INIT_PATTERN.fullmatch(value):
        raise ValueError(f"allowed: {INITIALISATIONS}")
    return value


Pattern = Annotated[str, Field(min_length=1), AfterValidator(regex)]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]


class LoRAConfig(Config):
    """Options of LoRA."""

    meant: ClassVar[Mapping[str, str]] = {
        "use_rslora": "rslora",
        "use_dora": "dora",
        "init_lora_weights": "init",
        "loraplus_lr_ratio": "lr_ratio",
        "bias": "There is no such option: biases stay as they are.",
        "modules_to_save": "There is no such option: a fresh head trains and is saved always.",
        "task_type": "There is no such option: the recipe's task says what the model is for.",
    }

    rank: Rank = Field(8, description="rank of the update")
    alpha: Alpha = Field(
        16, description="the update is scaled by alpha / rank", json_schema_extra=usual(0.1, 16, per="rank")
    )
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="dropout on the update's input while training; 0 for tasks with preferences unless set",
        json_schema_extra=usual(0, 0.5),
    )
    targets: ModuleNames = Field(
        ALL_LINEAR,
        min_length=1,
        description="all-linear; a regular expression for whole module paths; or a list of module names or paths",
    )
    rank_pattern: dict[Pattern, Rank] = Field(
        {},
        description="ranks of single layers, by name or regular expression, as {q_proj: 4, "
        "'layers\\.0\\..*': 16}; the first match counts",
    )
    alpha_pattern: dict[Pattern, Alpha] = Field({}, description="alphas of single layers, likewise")
    rslora: bool = Field(
        False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)"
    )
    dora: bool = Field(
        False,
        description="train magnitudes and directions of the weights separately (DoRA, Liu et al. 2024, "
        "arXiv:2402.09353)",
    )
    init: Annotated[str, BeforeValidator(_init)] = Field(
        "kaiming",
        description="how A starts: kaiming or gaussian; or how A and B start from the weight itself: pissa, "
        "pissa_niter_N (fast, with N iterations) or olora",
    )
    lr_ratio: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354; the "
        "authors recommend 16)",
        json_schema_extra=usual(0.25, 64),
    )
    start_from: str | None = Field(
        None,
        description="folder of a PEFT LoRA adapter to continue; it sets rank, alpha, their patterns, "
        "targets, rslora and dora",
    )

    _asked_for_all: bool = PrivateAttr(False)
    """Whether the recipe sets targets to all-linear beside `start_from`, as `ftengine init` writes it out."""

    @model_validator(mode="after")
    def _follow_start_from(self) -> LoRAConfig:
        if self.start_from is not None and starts_from_weight(self.init):
            raise RecipeError(
                f"strategy.init is {self.init!r}, which starts from the base's weights, and strategy.start_from is "
                f"{self.start_from!r}. Remove one of them."
            )
        if self.start_from is not None and "targets" in self.model_fields_set and self.targets == ALL_LINEAR:
            self._asked_for_all = True
            self.model_fields_set.discard("targets")  # the file names layers; the model tells whether these are all
        follow(self, LoRAFile.read, peft_format.SHARED)
        return self

    def require_all(self, loaded: LoadedModel, paths: Collection[str]) -> None:
        """Refuse an adapter on other layers than the recipe's all-linear (RecipeError)."""
        if self._asked_for_all and {*(linear := select(loaded, ALL_LINEAR)[ALL_LINEAR])} != {*paths}:
            raise RecipeError(
                f"strategy.targets is {ALL_LINEAR!r}, {counted(len(linear), 'layer')} of this model, but the adapter "
                f"in strategy.start_from ({self.start_from!r}) is on {len(paths):,}. Leave targets out, or start "
                "without that adapter."
            )

    def layer(self, path: str) -> tuple[int, float]:
        """Return rank and scale of the layer at `path`: the first matching pattern counts, as in PEFT."""
        rank = next((r for pattern, r in self.rank_pattern.items() if _matches(pattern, path)), self.rank)
        alpha = next((x for pattern, x in self.alpha_pattern.items() if _matches(pattern, path)), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def as_stored(self) -> LoRAConfig:
        """Return the options of the equivalent plain LoRA on the original base, which is saved.

        With PiSSA and OLoRA ranks and alphas double, so that the scale stays the same.
        """
        if not starts_from_weight(self.init):
            return self
        grown = math.sqrt(2) if self.rslora else 2
        return self.model_copy(
            update={
                "init": "kaiming",
                "rank": 2 * self.rank,
                "alpha": grown * self.alpha,
                "rank_pattern": {pattern: 2 * rank for pattern, rank in self.rank_pattern.items()},
                "alpha_pattern": {pattern: grown * alpha for pattern, alpha in self.alpha_pattern.items()},
            }
        )


class LoRA(Strategy):
    """Low-rank updates beside frozen layers (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    name = "lora"
    traits = StrategyTraits(is_default=True, supports_sharding=True, learning_rate=5e-4)
    Config = LoRAConfig
    paper = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"

    _matches: Mapping[str, list[str]] = MappingProxyType({})

    def prepare(self, loaded: LoadedModel) -> None:
        module, config = loaded.module, self.config
        self._matches = select(loaded, config.targets, heads_are_welcome=config.start_from is not None)
        paths = list(dict.fromkeys(path for paths in self._matches.values() for path in paths))
        config.require_all(loaded, paths)
        for option in PATTERNS if config.start_from is None else ():
            _require_effect(option, getattr(config, option), paths)
        for path in paths:
            _require_fit(path, module.get_submodule(path), config)
        freeze_base(loaded)
        for path in paths:
            add_lora(module.get_submodule(path), *config.layer(path), config.dropout, config.init, config.dora)
        if config.start_from is not None:
            require_base_of(Path(config.start_from), loaded)
            self.load(loaded, Path(config.start_from))
            for option in PATTERNS:  # PEFT's files may hold some that match nothing
                patterns = getattr(config, option)
                counting = set(_first(patterns, paths).values())
                setattr(config, option, {p: patterns[p] for p in patterns if p in counting})

    def matches(self) -> dict[str, list[str]]:
        return dict(self._matches)

    def environment(self) -> dict[str, Any]:
        """Return which implementation computes the low-rank updates on each device, and why."""
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        chosen = {device: active_backend(device) for device in devices}
        return {"LoRA layers": {device: {"backend": name, "reason": why} for device, (name, why) in chosen.items()}}

    @property
    def starts_from(self) -> str | None:
        return self.config.start_from

    def loading_options(self) -> dict[str, Any]:
        # The run's own adapter has all that came from start_from or from the base's weights.
        return self.config.as_stored().model_dump(mode="json") | {"start_from": None}

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group trainable parameters: B at `lr_ratio` times the rate (LoRA+), and no decay of vectors.

        An embedding's B keeps the rate: there A starts at zero, a case that LoRA+ does not cover.
        """
        layers, ratio = lora_layers(model).values(), self.config.lr_ratio
        fast = {id(layer.lora_b) for layer in layers if not isinstance(layer, LoRAEmbedding)}
        vectors = {id(layer.lora_magnitude) for layer in layers}  # of a convolution, shaped as its output
        return param_groups(model, weight_decay, lambda _, p: learning_rate * (ratio if id(p) in fast else 1), vectors)

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a PEFT adapter for the original base: adapter_config.json and adapter_model.safetensors.

        With PiSSA and OLoRA it has twice the rank: the update, less the one that training started from.
        """
        layers, stored = lora_layers(loaded.module), self.config.as_stored()
        options = {key: getattr(stored, key) for key in (*peft_format.SHARED, "dropout")}
        options["targets"] = peft_format.target_modules(loaded.module, layers)
        config = LoRAFile(**options, modules_to_save=peft_format.modules_to_save(loaded))
        peft_format.write_weights(directory, peft_format.lora_tensors(loaded))
        transposed = any(isinstance(layer, LoRAConv1D) for layer in layers.values())
        config.write(directory, loaded, bias="none", fan_in_fan_out=transposed)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read a PEFT adapter, trained here or by PEFT, into a prepared model.

        Refused are a folder without such an adapter (RunError), and another rank, scale, keys or shapes (BaseMismatch).
        """
        adapter = LoRAFile.read(directory)
        require_same(self.config.as_stored(), adapter, [k for k in peft_format.SHARED if k != "targets"], directory)
        peft_format.refuse_other_whole_modules(adapter, loaded, f"the adapter in {str(directory)!r}")
        peft_format.fill_lora(loaded, peft_format.read_weights(directory), str(directory))

    def check_merge(self) -> None:
        """Refuse nothing: only a loaded base shows whether its weights can hold an update."""

    def merge(self, loaded: LoadedModel) -> None:
        """Add each update to its base weight and restore the original layers, all or none.

        A model without LoRA is refused (RunError), and so is a base weight that is quantised, computed, or shared
        (NotMergeable).
        """
        layers, holders = lora_layers(loaded.module), dict[int, list[str]]()
        if not layers:
            raise RunError("this model has no LoRA layers to merge; call prepare and load first.")
        for name, parameter in loaded.module.named_parameters(remove_duplicate=False):
            holders.setdefault(id(parameter), []).append(name)
        for path, layer in layers.items():
            _require_mergeable(path, layer, holders)
        for layer in layers.values():
            layer.lora_merge()
            remove_lora(layer)


def _matches(pattern: str, path: str) -> bool:
    """Say whether a pattern is the path, or its ending after a dot, as in PEFT's rank_pattern."""
    return bool(matching([path], rf"(.*\.)?({pattern})", full_match=True))


def _first(patterns: Collection[str], paths: list[str]) -> dict[str, str | None]:
    """Return for each path the first pattern that matches it."""
    return {path: next((p for p in patterns if _matches(p, path)), None) for path in paths}


def _require_effect(option: str, patterns: Collection[str], paths: list[str]) -> None:
    """Check that each pattern is the first to match some layer."""
    first = _first(patterns, paths)
    for pattern in patterns:
        matched = [path for path in paths if _matches(pattern, path)]
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


def _require_fit(path: str, layer: nn.Module, config: LoRAConfig) -> None:
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
            f"strategy.init {config.init!r} takes the rank from the weight's own, but rank {rank} exceeds "
            f"the {min(weight.shape)} of {path!r}. Lower strategy.rank, or lower it there with strategy.rank_pattern."
        )


def _require_mergeable(path: str, layer: LoRALayer, holders: Mapping[int, list[str]]) -> None:
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
