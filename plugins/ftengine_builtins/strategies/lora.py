"""LoRA as a strategy: options, target layers, the optimiser's groups, PEFT's format, merging."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, PrivateAttr, model_validator
from torch import nn

from ftengine.api import Config, LoadedModel, Regularizer, Strategy, StrategyTraits, usual
from ftengine.errors import RecipeError, RunError
from ftengine.model import ModuleNames
from ftengine.ops import active_backend
from ftengine.text import counted
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.adapter_config import follow, require_base_of, require_same
from ftengine_builtins.strategies.expert_layers import (
    add_to_experts,
    add_to_router,
    expert_layers,
    expert_notes,
    lora_routers,
    routers,
)
from ftengine_builtins.strategies.lora_checks import (
    first_matches,
    matches,
    require_effect,
    require_fit,
    require_mergeable,
    require_plain,
    set_expert_ranks,
)
from ftengine_builtins.strategies.lora_layers import (
    INIT_PATTERN,
    INITIALISATIONS,
    LoRAConv1D,
    LoRAEmbedding,
    add_lora,
    lora_layers,
    remove_lora,
    starts_from_weight,
)
from ftengine_builtins.strategies.peft_format import LoRAFile
from ftengine_builtins.strategies.rates import Pattern, Rates, relative_rates
from ftengine_builtins.strategies.routing import ExpertLoads
from ftengine_builtins.strategies.targets import ALL_LINEAR, experts_of, freeze_base, param_groups, select

PATTERNS = ("rank_pattern", "alpha_pattern")


def _init(value: Any) -> Any:
    if not isinstance(value, str) or not INIT_PATTERN.fullmatch(value):
        raise ValueError(f"allowed: {INITIALISATIONS}")
    return value


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
        16, description="the update is scaled by alpha / rank", json_schema_extra=usual(0.01, 16, per="rank")
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
        description="all-linear, which means experts too; attention; experts; a regular expression for whole paths; "
        "or a list of names or paths of modules, or of experts' parameters",
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
    rate_pattern: Rates = {}  # noqa: RUF012
    expert_rank: Rank | Literal["split"] | None = Field(
        None,
        description="rank of each expert's update; split: rank divided by the experts that a token passes; null: rank",
    )
    expert_a: Literal["own", "shared"] = Field(
        "own",
        description="A for each expert, or one for all experts of a layer, which then differ in B (HydraLoRA, Tian et "
        "al. 2024, arXiv:2404.19245)",
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
        rank = next((r for pattern, r in self.rank_pattern.items() if matches(pattern, path)), self.rank)
        alpha = next((x for pattern, x in self.alpha_pattern.items() if matches(pattern, path)), self.alpha)
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
    _is_mixture = False

    def prepare(self, loaded: LoadedModel) -> None:
        module, config = loaded.module, self.config
        self._matches = select(loaded, config.targets, heads_are_welcome=config.start_from is not None)
        paths = list(dict.fromkeys(path for paths in self._matches.values() for path in paths))
        config.require_all(loaded, paths)
        for option in PATTERNS if config.start_from is None else ():
            require_effect(option, getattr(config, option), paths)
        experts, of_routers = {*experts_of(module)}, routers(module)
        set_expert_ranks(config, module, [path for path in paths if path in experts])
        for path in paths:
            if path in experts or path in of_routers:
                require_plain(path, config)
            else:
                require_fit(path, module.get_submodule(path), config)
        freeze_base(loaded)
        self._is_mixture = bool(experts)
        for path in paths:
            rank, scale = config.layer(path)
            if path in experts:
                parent, _, name = path.rpartition(".")
                one_a = config.expert_a == "shared"
                part = module.get_submodule(parent)
                add_to_experts(part, name, rank, scale, config.dropout, config.init, one_a=one_a)
            elif path in of_routers:
                add_to_router(module.get_submodule(path), rank, scale, config.init)
            else:
                add_lora(module.get_submodule(path), rank, scale, config.dropout, config.init, config.dora)
        relative_rates(module, config.rate_pattern)
        if config.start_from is not None:
            require_base_of(Path(config.start_from), loaded)
            self.load(loaded, Path(config.start_from))
            for option in PATTERNS:  # PEFT's files may hold some that match nothing
                patterns = getattr(config, option)
                counting = set(first_matches(patterns, paths).values())
                setattr(config, option, {p: patterns[p] for p in patterns if p in counting})

    def notes(self, loaded: LoadedModel) -> tuple[list[str], list[str]]:
        """Say how many experts train, by how much, and which are left out."""
        return expert_notes(loaded.module)

    def matches(self) -> dict[str, list[str]]:
        return dict(self._matches)

    def regularizer(self, steps: int) -> Regularizer | None:
        """Return what counts the tokens of a mixture's experts."""
        return ExpertLoads(steps) if self._is_mixture else None

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
        """Group trainable parameters: `rate_pattern`, B at `lr_ratio` times the rate (LoRA+), and no decay of vectors.

        An embedding's B keeps the rate: there A starts at zero, a case that LoRA+ does not cover.
        """
        layers, ratio = lora_layers(model).values(), self.config.lr_ratio
        fast = {id(layer.lora_b) for layer in layers if not isinstance(layer, LoRAEmbedding)}
        fast |= {id(part.lora_factors(name)[1]) for part in expert_layers(model).values() for name in part.lora_names}
        fast |= {id(router.lora_b) for router in lora_routers(model).values()}
        vectors = {id(layer.lora_magnitude) for layer in layers}  # of a convolution, shaped as its output
        share = relative_rates(model, self.config.rate_pattern)
        rate = lambda name, p: learning_rate * share[name] * (ratio if id(p) in fast else 1)  # noqa: E731
        return param_groups(model, weight_decay, rate, vectors)

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a PEFT adapter for the original base: adapter_config.json and adapter_model.safetensors.

        With PiSSA and OLoRA it has twice the rank: the update, less the one that training started from.
        """
        layers, stored = lora_layers(loaded.module), self.config.as_stored()
        options = {key: getattr(stored, key) for key in (*peft_format.SHARED, "dropout")}
        options |= peft_format.targets_of(loaded.module, layers)
        if options["parameters"]:
            options["dropout"] = (
                0.0  # PEFT opens no file with dropout of parameters, though it matters in training alone
            )
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
        of_experts = [*expert_layers(loaded.module).values(), *lora_routers(loaded.module).values()]
        if not layers and not of_experts:
            raise RunError("this model has no LoRA layers to merge; call prepare and load first.")
        for name, parameter in loaded.module.named_parameters(remove_duplicate=False):
            holders.setdefault(id(parameter), []).append(name)
        for path, layer in layers.items():
            require_mergeable(path, layer, holders)
        for layer in layers.values():
            layer.lora_merge()
            remove_lora(layer)
        for part in of_experts:
            part.lora_merge()
            part.lora_remove()
