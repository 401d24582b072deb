"""LoRA as a strategy: choose layers, inject, save in PEFT's format, merge and unmerge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftengine.api import LoadedModel, Strategy
from ftengine.errors import BaseMismatch, NoMatch, RecipeError, RunError
from ftengine.model import decayed, trainable
from ftengine.ops import active_backend
from ftengine_builtins.strategies import lora_initial, lora_inject, lora_tensors, peft_format
from ftengine_builtins.strategies.lora_config import LoraConfig, matches
from ftengine_builtins.strategies.lora_layers import DenseLora, LoraConv1D, LoraEmbedding, LoraLinear
from ftengine_builtins.strategies.lora_merge import Removed, merge_all, unmerge_all
from ftengine_builtins.strategies.targets import select, whole_modules


class Lora(Strategy):
    """Low-rank updates beside frozen layers (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    name = "lora"
    starter = True
    Config = LoraConfig
    citation = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"

    def __init__(self, config: LoraConfig | None = None) -> None:
        super().__init__(config)
        self._matches: dict[str, list[str]] = {}
        self._merged: Removed = {}

    def prepare(self, loaded: LoadedModel) -> None:
        module, config = loaded.module, self.config
        self._matches = select(loaded, config.targets, heads_are_welcome=config.start_from is not None)
        settings = self._settings(dict.fromkeys(path for paths in self._matches.values() for path in paths))
        for path, wanted in settings.items():
            _refuse_unfit(path, module.get_submodule(path), wanted)
        whole = whole_modules(loaded)
        module.requires_grad_(False)
        for path, wanted in settings.items():
            lora_inject.inject(module.get_submodule(path), wanted)
        for path in whole:
            module.get_submodule(path).requires_grad_(True)
        if config.start_from is not None:
            self.load(loaded, Path(config.start_from))

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
        # The run's own adapter has all that came from start_from or from the base's weights.
        return self._as_stored().model_dump(mode="json") | {"start_from": None}

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group trainable parameters: B at `lr_ratio` times the rate (LoRA+), and no decay of vectors.

        An embedding's B keeps the rate: there A is what starts at zero, and LoRA+ does not speak of it.
        """
        layers = lora_inject.lora_layers(model).values()
        fast = {id(layer.lora_b) for layer in layers if not isinstance(layer, LoraEmbedding)}
        vectors = {id(layer.lora_magnitude) for layer in layers}  # of a convolution, shaped as its output
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        decays = decayed(model)
        for name, parameter in trainable(model).items():
            rate = learning_rate * (self.config.lr_ratio if id(parameter) in fast else 1.0)
            decay = weight_decay if name in decays and id(parameter) not in vectors else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a PEFT adapter for the original base: adapter_config.json and adapter_model.safetensors.

        With PiSSA and OLoRA it has twice the rank: the update, less the one that training started from.
        """
        layers, stored = lora_inject.lora_layers(loaded.module), self._as_stored()
        config = peft_format.AdapterConfig(
            **{key: getattr(stored, key) for key in peft_format.SHARED if key != "targets"},
            dropout=stored.dropout,
            targets=peft_format.target_modules(loaded.module, layers),
            modules_to_save=peft_format.modules_to_save(loaded.module, whole_modules(loaded)),
        )
        peft_format.write_weights(directory, lora_tensors.contents(loaded))
        peft_format.write_config(
            directory,
            config,
            loaded.module,
            loaded.head,
            base_model_name_or_path=loaded.source,
            fan_in_fan_out=any(isinstance(layer, LoraConv1D) for layer in layers.values()),
        )

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read a PEFT adapter, trained here or by PEFT, into a prepared model.

        Raises:
            RunError: the folder is no adapter that can be read.
            BaseMismatch: rank or scaling differ, keys are missing or unexpected, or a shape differs.
        """
        adapter, expected = peft_format.read_config(directory), self._as_stored()
        for key in peft_format.SHARED:
            ours, theirs = getattr(expected, key), getattr(adapter, key)
            if key != "targets" and ours != theirs:
                raise BaseMismatch(
                    f"the adapter in {str(directory)!r} was trained with {key} {theirs!r}; this model is prepared for "
                    f"{key} {ours!r}. Set strategy.{key}={theirs!r}, or choose the adapter that belongs here."
                )
        whole = whole_modules(loaded)
        peft_format.refuse_other_whole_modules(adapter, loaded.module, whole, f"the adapter in {str(directory)!r}")
        lora_tensors.fill(loaded, peft_format.read_weights(directory), str(directory))

    def merge(self, loaded: LoadedModel) -> None:
        """Fold each update into its base weight and put the original layers back; `unmerge` undoes it."""
        if not lora_inject.lora_layers(loaded.module):
            raise RunError("this model has no LoRA layers to merge; call prepare and load first.")
        self._merged = merge_all(loaded.module)

    def unmerge(self, loaded: LoadedModel) -> None:
        """Take what `merge` folded in out again and go on as before.

        Each base weight comes back up to the rounding of its dtype, once for merging and once for unmerging; load
        the base anew where that matters.

        Raises:
            RunError: this strategy merged nothing, or unmerged it already.
        """
        if not self._merged:
            raise RunError("nothing to unmerge: this strategy has not merged a model, or has unmerged it already.")
        removed, self._merged = self._merged, {}
        unmerge_all(loaded.module, removed)

    def _settings(self, paths: dict[str, None]) -> dict[str, lora_inject.Settings]:
        config = self.config
        for option in ("rank_pattern", "alpha_pattern"):
            patterns = getattr(config, option)
            for pattern in patterns:
                if not any(matches(pattern, path) for path in paths):
                    raise NoMatch(
                        f"{option} {pattern!r} matches none of the {len(paths)} layers that strategy.targets takes, "
                        f"e.g. {next(iter(paths))!r}. Correct it or leave it out."
                    )
            first = {path: next((p for p in patterns if matches(p, path)), None) for path in paths}
            for pattern in patterns:
                if pattern not in first.values():
                    path = next(path for path in paths if matches(pattern, path))
                    raise NoMatch(
                        f"{option} {pattern!r} has no effect: each layer that it matches, e.g. {path!r}, matches an "
                        f"earlier pattern, {first[path]!r}, and the first counts. Put it before that one, or leave it "
                        "out."
                    )
        return {
            path: lora_inject.Settings(*config.layer(path), config.dropout, config.init, config.dora) for path in paths
        }

    def _as_stored(self) -> LoraConfig:
        """Return the options of the plain LoRA on the original base that is saved; ranks double with PiSSA and OLoRA.

        Alphas grow along, so that the scale stays the same.
        """
        config = self.config
        if lora_initial.decomposition(config.init) is None:
            return config
        grown = math.sqrt(2) if config.rslora else 2
        return config.model_copy(
            update={
                "init": "kaiming",
                "rank": 2 * config.rank,
                "alpha": grown * config.alpha,
                "rank_pattern": {pattern: 2 * rank for pattern, rank in config.rank_pattern.items()},
                "alpha_pattern": {pattern: grown * alpha for pattern, alpha in config.alpha_pattern.items()},
            }
        )


def _refuse_unfit(path: str, layer: nn.Module, settings: lora_inject.Settings) -> None:
    """Refuse options that a layer cannot have.

    Raises:
        RecipeError: DoRA or an initialisation needs weights that the layer does not have, or the rank is too high.
    """
    how, weight = lora_inject.kind(layer), getattr(layer, "weight", None)
    plain = issubclass(how, DenseLora) and weight is not None and weight.is_floating_point() and weight.itemsize > 1
    what = f"{path!r} is a {type(layer).__name__}"
    if settings.dora and not plain:
        raise RecipeError(
            f"strategy.dora needs the norms of float weights, but {what} whose weights are packed or used in another "
            "way. Set strategy.dora=false, leave that layer out of strategy.targets, or set model.source to an "
            "unquantised copy of the base."
        )
    if lora_initial.decomposition(settings.init) is None:
        return
    if not (plain and issubclass(how, LoraLinear)):
        raise RecipeError(
            f"strategy.init {settings.init!r} decomposes the float weights of Linear and Conv1D layers, but {what}. "
            "Use kaiming or gaussian, or leave that layer out of strategy.targets."
        )
    if settings.rank > min(weight.shape):
        raise RecipeError(
            f"strategy.init {settings.init!r} takes the rank from the weight's own, but rank {settings.rank} exceeds "
            f"the {min(weight.shape)} of {path!r}. Lower strategy.rank, or lower it there with strategy.rank_pattern."
        )
