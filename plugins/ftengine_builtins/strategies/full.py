"""Full tuning: every parameter trains, and the result is a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from ftengine import api
from ftengine.api import LoadedModel, Regularizer, Strategy, StrategyTraits, usual
from ftengine.errors import BaseMismatch, NoMatch, RecipeError, RunError
from ftengine.model import (
    ModuleNames,
    copy_into,
    default_param_groups,
    has_running_statistics,
    load_trained,
    matching,
    near_modules,
    save_model,
    save_trained,
    trainable,
)
from ftengine_builtins.loaders.quiet import reading
from ftengine_builtins.strategies.expert_layers import expert_modules
from ftengine_builtins.strategies.full_levels import Levels, find_levels
from ftengine_builtins.strategies.rates import Rates, relative_rates
from ftengine_builtins.strategies.routing import ExpertLoads
from ftengine_builtins.strategies.targets import inside, param_groups

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class Full(Strategy):
    """Train every parameter, or all but some.

    Fixed parameters of the architecture (sinusoidal positions) stay fixed. With layer_decay, the head has the recipe's
    learning rate, and each layer below a constant share of the one above (discriminative fine-tuning, Howard & Ruder
    2018, arXiv:1801.06146; Clark et al. 2020, arXiv:2003.10555). With unfreeze_every, training begins with a new head,
    or with the head and the layer below it; then layers join from the top (gradual unfreezing, Howard & Ruder 2018;
    Raffel et al. 2020, arXiv:1910.10683, §3.5.1). Embeddings tied to the output matrix train throughout.
    """

    name = "full"
    traits = StrategyTraits(supports_sharding=True, learning_rate=2e-5)
    paper = "Howard & Ruder 2018, Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146"

    class Config(api.Config):
        freeze: ModuleNames = Field(
            [], description="modules to freeze: a list of names or paths, or a regular expression for whole paths"
        )
        layer_decay: float = Field(
            1.0,
            gt=0,
            le=1,
            description="each layer's learning rate divided by that of the layer above",
            json_schema_extra=usual(0.3, 1),
        )
        rate_pattern: Rates = {}  # noqa: RUF012
        unfreeze_every: Annotated[int, Field(ge=1, strict=True)] | Literal["epoch", "even"] | None = Field(
            None,
            description="gradual unfreezing from the top: steps per layer; epoch: one layer per epoch; even: "
            "over the whole run",
        )
        batch_norm: Literal["frozen", "train"] = Field(
            "frozen", description="running statistics of BatchNorm: frozen, or updated in training"
        )

    _matches: Mapping[str, list[str]] = MappingProxyType({})
    _levels: Levels | None = None
    _is_mixture = False

    def prepare(self, loaded: LoadedModel) -> None:
        self._is_mixture = bool(expert_modules(loaded.module))
        quantised = getattr(loaded.module, "hf_quantizer", None) is not None
        for name, parameter in loaded.module.named_parameters():
            if quantised or not parameter.is_floating_point() or parameter.itemsize < 2:
                raise RecipeError(
                    f"strategy full needs float weights, but {name!r} holds {str(parameter.dtype)[6:]} in a quantised "
                    "model. Set model.source to an unquantised copy, or use a strategy such as lora."
                )
        if self.config.layer_decay < 1 or self.config.unfreeze_every is not None:
            self._levels = find_levels(loaded)
        if self.config.freeze:
            self._matches = freeze(loaded, self.config.freeze)
        relative_rates(loaded.module, self.config.rate_pattern)
        if self.config.batch_norm == "frozen":
            keep_statistics(loaded)

    def matches(self) -> dict[str, list[str]]:
        return dict(self._matches)

    def regularizer(self, steps: int) -> Regularizer | None:
        """Return what counts the tokens of a mixture's experts."""
        return ExpertLoads(steps) if self._is_mixture else None

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the default's two groups for each rate: that of `rate_pattern`, and of the layer.

        The latter is learning_rate · layer_decay^(layers below the head).
        """
        if not self.config.rate_pattern and (self._levels is None or self.config.layer_decay == 1):
            return default_param_groups(model, learning_rate, weight_decay)
        decay, share = self.config.layer_decay, relative_rates(model, self.config.rate_pattern)

        def rate(name: str, _: nn.Parameter) -> float:
            below = 0 if self._levels is None else self._levels.head - self._levels.of[name]
            return learning_rate * share[name] * decay**below

        return param_groups(model, weight_decay, rate)

    def frozen_parameters(
        self, model: nn.Module, step: int, steps: int, steps_per_epoch: int
    ) -> Iterable[nn.Parameter]:
        """Return the layers that have not joined yet."""
        every, levels = self.config.unfreeze_every, self._levels
        if every is None or levels is None:
            return []
        waiting = {name: p for name, p in trainable(model).items() if name not in levels.output}
        turns = sorted({levels.of[name] for name in waiting}, reverse=True)
        if not levels.new_head and turns[:1] == [levels.head] and len(turns) > 1:
            turns = turns[1:]  # a head that is trained already joins the layer below
        if not turns:
            return []
        pace = {"epoch": steps_per_epoch, "even": steps / len(turns)}.get(every, every)
        lowest = turns[min(int(step / pace), len(turns) - 1)]
        return [p for name, p in waiting.items() if levels.of[name] < lowest]

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a transformers folder with the processor, or `trained.safetensors` for a plain torch module."""
        module = loaded.module
        if not hasattr(module, "save_pretrained"):
            save_trained(loaded.module, directory)
            return
        # A model's config names one dtype, and readers cast everything to that: what is frozen is widened for a while.
        narrow = {p: p.data for p in module.parameters() if p.dtype != _widest(module)}
        for parameter in narrow:
            parameter.data = parameter.data.to(_widest(module))
        try:
            save_model(module, loaded.processor, directory)
        finally:
            for parameter, data in narrow.items():
                parameter.data = data

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read what `save` wrote; a transformers folder as transformers reads it."""
        if not hasattr(loaded.module, "save_pretrained"):
            load_trained(loaded.module, directory)
            return
        if not any((Path(directory) / name).exists() for name in WEIGHT_FILES):
            raise RunError(
                f"no {WEIGHT_FILES[0]} in {str(directory)!r}; only safetensors are read. "
                "Convert other weights with save_pretrained where you trust them."
            )
        # transformers undoes what it did to the names on saving; shards and ties are its business too.
        with reading(str(directory), RunError):
            trained, info = type(loaded.module).from_pretrained(
                directory,
                dtype=_widest(loaded.module),  # trained and frozen parameters may differ
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if wrong:
            raise BaseMismatch(
                f"{str(directory)!r} does not fit {type(loaded.module).__name__}: {len(info['missing_keys'])} keys "
                f"missing, {len(info['unexpected_keys'])} unexpected ({', '.join(wrong[:3])})."
            )
        copy_into(loaded.module.state_dict(), trained.state_dict(), str(directory))

    def check_merge(self) -> None:
        """Refuse nothing."""

    def merge(self, loaded: LoadedModel) -> None:
        """Nothing to do: the base weights are the trained ones."""


def _widest(module: nn.Module) -> torch.dtype:
    """Return the dtype that holds every parameter's values."""
    return reduce(torch.promote_types, (p.dtype for p in module.parameters()))


def freeze(loaded: LoadedModel, patterns: str | Sequence[str]) -> dict[str, list[str]]:
    """Freeze what patterns name and return what each matched; new modules always train.

    A string is a regular expression for whole paths of modules or parameters; an item of a list is such a path or its
    ending after a dot. A pattern without a match is refused (NoMatch), and so is a model with nothing left to train
    (RecipeError).
    """
    module = loaded.module
    parameters = dict(module.named_parameters())
    paths = [*(path for path, _ in module.named_modules() if path), *parameters]
    matches: dict[str, list[str]] = {}
    whole, new = isinstance(patterns, str), loaded.new_modules
    for pattern in [patterns] if whole else patterns:
        matched = matching(paths, pattern, full_match=whole)
        frozen = [p for name, p in parameters.items() if inside(name, matched) and not inside(name, new)]
        if not frozen:
            raise _nothing(pattern, matched, paths, module, whole)
        for parameter in frozen:
            parameter.requires_grad_(False)
        matches[f"freeze {pattern}"] = [path for path in matched if not inside(path.rpartition(".")[0], matched)]
    if not new and not any(p.requires_grad for p in parameters.values()):
        raise RecipeError(f"strategy.freeze {patterns!r} leaves nothing to train. Freeze fewer modules.")
    return matches


def _nothing(pattern: str, matched: Sequence[str], paths: Sequence[str], module: nn.Module, whole: bool) -> NoMatch:
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied = first[id(parameter)]
        if inside(name, matched) and tied != name:
            return NoMatch(
                f"strategy.freeze pattern {pattern!r} matches {name!r}, whose parameter is tied to {tied!r}. "
                f"Freeze {tied.rpartition('.')[0] or tied!r}, which freezes both."
            )
    if matched:
        return NoMatch(
            f"strategy.freeze pattern {pattern!r} matches {matched[0]!r}, where nothing can be frozen: it has no "
            "parameters, or was newly initialised and has to train. Take the pattern out."
        )
    how = " A string is a regular expression for the whole path; put plain names in a list." if whole else ""
    shown = list(dict.fromkeys(path for path in paths if path.count(".") <= 1 and not path[-1].isdigit()))[:12]
    return NoMatch(
        f"strategy.freeze pattern {pattern!r} matches no module or parameter of {type(module).__name__}."
        f"{near_modules(pattern, paths)}{how} It has {', '.join(shown)}, …"
    )


class StillStatistics:
    """Mixin for a normalisation layer's class: it normalises with its running statistics in training too."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)  # type: ignore[misc]


def keep_statistics(loaded: LoadedModel) -> None:
    """Keep running statistics fixed, in training mode as well.

    Weight and bias still train. Newly initialised layers are left out: their statistics are not yet meaningful.
    """
    for path, layer in loaded.module.named_modules():
        if has_running_statistics(layer) and not inside(path, loaded.new_modules):
            if not isinstance(layer, StillStatistics):
                layer.__class__ = _still(type(layer))
            layer.eval()


@cache
def _still(cls: type[nn.Module]) -> type[nn.Module]:
    # The name stays: it is what a model prints and what error messages show.
    return type(cls.__name__, (StillStatistics, cls), {"__module__": cls.__module__})
