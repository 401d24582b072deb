"""LoRA as a strategy: choose layers, inject, save in PEFT's format, merge."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from ftengine.api import Config, LoadedModel, Strategy
from ftengine.errors import BaseMismatch, RecipeError, RunError
from ftengine.ops import active_backend
from ftengine.parameters import copy_into
from ftengine_builtins.strategies import lora_layers, peft_format
from ftengine_builtins.strategies.targets import ALL_LINEAR, select, whole_modules


def _pattern(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("write all-linear, a regular expression for whole module paths, or a list of module names")
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return value


class LoraConfig(Config):
    """Options of LoRA."""

    rank: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(16, gt=0, allow_inf_nan=False, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the update's input while training")
    targets: Annotated[str | list[str], BeforeValidator(_pattern)] = Field(
        ALL_LINEAR,
        description="all-linear; a regular expression for whole module paths; or a list of module names or paths",
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023)")
    init: Literal["kaiming", "gaussian"] = Field("kaiming", description="how A starts; B starts at zero")
    start_from: str | None = Field(
        None, description="folder of a PEFT LoRA adapter to continue; it sets rank, alpha, targets and rslora"
    )

    @model_validator(mode="after")
    def _follow_start_from(self) -> LoraConfig:
        if self.start_from is None:
            return self
        adapter = peft_format.read_config(Path(self.start_from))
        for key in ("rank", "alpha", "targets", "rslora"):
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
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Lora(Strategy):
    """Low-rank updates beside frozen linear layers (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    name = "lora"
    starter = True
    Config = LoraConfig
    citation = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"

    def __init__(self, config: LoraConfig | None = None) -> None:
        super().__init__(config)
        self._matches: dict[str, list[str]] = {}

    def prepare(self, loaded: LoadedModel) -> None:
        module = loaded.module
        self._matches = select(loaded, self.config.targets, heads_are_welcome=self.config.start_from is not None)
        whole = whole_modules(loaded)
        module.requires_grad_(False)
        initialise = {"kaiming": lora_layers.kaiming, "gaussian": lora_layers.gaussian}[self.config.init]
        for path in dict.fromkeys(path for paths in self._matches.values() for path in paths):
            lora_layers.inject(
                module.get_submodule(path), self.config.rank, self.config.scale, self.config.dropout, initialise
            )
        for path in whole:
            module.get_submodule(path).requires_grad_(True)
        if self.config.start_from is not None:
            self.load(loaded, Path(self.config.start_from))

    def matches(self) -> dict[str, list[str]]:
        return self._matches

    def environment(self) -> dict[str, Any]:
        """Return which implementation computes the low-rank updates on each device, and why."""
        found = {}
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            backend, reason = active_backend(device)
            found[device] = {"backend": backend, "reason": reason}
        return {"lowrank": found}

    def reopened(self) -> dict[str, Any]:
        return super().reopened() | {"start_from": None}  # the run's own adapter has all that came from there

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a PEFT adapter: adapter_config.json and adapter_model.safetensors."""
        layers = lora_layers.lora_layers(loaded.module)
        config = peft_format.AdapterConfig(
            rank=self.config.rank,
            alpha=self.config.alpha,
            dropout=self.config.dropout,
            rslora=self.config.rslora,
            targets=peft_format.target_modules(loaded.module, layers),
            modules_to_save=peft_format.modules_to_save(loaded.module, whole_modules(loaded)),
        )
        peft_format.write_weights(directory, _tensors(loaded))
        peft_format.write_config(
            directory,
            config,
            loaded.module,
            loaded.head,
            base_model_name_or_path=loaded.source,
            fan_in_fan_out=any(isinstance(layer, lora_layers.LoraConv1D) for layer in layers.values()),
        )

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read a PEFT adapter, trained here or by PEFT, into a prepared model.

        Raises:
            RunError: the folder is no adapter that can be read.
            BaseMismatch: rank or scaling differ, keys are missing or unexpected, or a shape differs.
        """
        adapter = peft_format.read_config(directory)
        for key in ("rank", "alpha", "rslora"):
            ours, theirs = getattr(self.config, key), getattr(adapter, key)
            if ours != theirs:
                raise BaseMismatch(
                    f"the adapter in {str(directory)!r} was trained with {key} {theirs!r}; this model is prepared for "
                    f"{key} {ours!r}. Set strategy.{key}={theirs!r}, or choose the adapter that belongs here."
                )
        whole = whole_modules(loaded)
        peft_format.refuse_other_whole_modules(adapter, loaded.module, whole, f"the adapter in {str(directory)!r}")
        copy_into(_tensors(loaded), peft_format.read_weights(directory), str(directory))

    def merge(self, loaded: LoadedModel) -> None:
        """Add scale · BA to each base weight and put the original layers back."""
        if not lora_layers.lora_layers(loaded.module):
            raise RunError("this model has no LoRA layers to merge; call prepare and load first.")
        lora_layers.merge_all(loaded.module)


def _tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return what an adapter file holds, by PEFT's keys: A and B, and whole modules."""
    tensors: dict[str, Tensor] = {}
    for path, layer in lora_layers.lora_layers(loaded.module).items():
        tensors[f"{peft_format.PREFIX}{path}.lora_A.weight"] = layer.lora_a
        tensors[f"{peft_format.PREFIX}{path}.lora_B.weight"] = layer.lora_b
    for path in whole_modules(loaded):
        for name, tensor in loaded.module.get_submodule(path).state_dict().items():
            tensors[f"{peft_format.PREFIX}{path}.{name}"] = tensor
    return tensors


def _comparable(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value
