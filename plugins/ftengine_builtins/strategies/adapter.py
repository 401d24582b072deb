"""Bottleneck adapters as a strategy: finding places, inserting, saving in AdapterHub's format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from torch import Tensor, nn

from ftengine.api import Config, LoadedModel, Strategy, StrategyTraits, usual
from ftengine.errors import BaseMismatch, NoMatch, RecipeError, RunError
from ftengine.model import TRAINED_FILE, copy_into, regex
from ftengine_builtins.strategies import adapterhub_format
from ftengine_builtins.strategies.adapter_config import follow, require_base_of, require_same
from ftengine_builtins.strategies.adapter_layers import Bottleneck, Init, Reads, initialise, insert
from ftengine_builtins.strategies.adapter_places import Place, find, find_named, input_width, keeps_grid
from ftengine_builtins.strategies.peft_format import whole_tensors
from ftengine_builtins.strategies.targets import freeze_base

NonLinearity = Literal[
    "relu", "gelu", "gelu_new", "leakyrelu", "mish", "quick_gelu", "relu6", "sigmoid", "silu", "swish", "tanh"
]

READS: dict[str, Reads] = {"houlsby": "output", "pfeiffer": "sum", "parallel": "residual"}

PRESETS: dict[str, dict[str, Any]] = {
    "houlsby": {"non_linearity": "swish", "reduction_factor": 16.0, "scaling": 1.0},
    "pfeiffer": {"non_linearity": "relu", "reduction_factor": 16.0, "scaling": 1.0},
    "parallel": {"non_linearity": "relu", "reduction_factor": 2.0, "scaling": 4.0},
}
"""AdapterHub's presets double_seq_bn, seq_bn and par_bn."""

SUBLAYERS = {"houlsby": ("attention", "output"), "pfeiffer": ("output",), "parallel": ("output",)}


def _factors(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = {str(key): factor for key, factor in value.items()}  # YAML reads 0 as a number, AdapterHub has text
        if not value or not all(re.fullmatch(r"default|\d+", key) for key in value):
            raise ValueError("write a number above 0, or a mapping from block numbers (0, 1, …) and default to such")
    return value


Factor = Annotated[float, Field(gt=0)]


SHARED = ("placement", "non_linearity", "scaling")
"""Options that no shape of a tensor tells."""


class AdapterConfig(Config):
    """Options of bottleneck adapters; null options follow the placement, as AdapterHub's presets do."""

    placement: Literal["houlsby", "pfeiffer", "parallel"] = Field(
        "pfeiffer",
        description="houlsby: after attention and feed-forward, reading their output; pfeiffer: after the feed-forward "
        "alone, reading its normalised sum with the residual; parallel: beside the feed-forward, reading the residual",
    )
    reduction_factor: Annotated[Factor | dict[str, Factor] | None, BeforeValidator(_factors)] = Field(
        None,
        description="width / bottleneck size, or a mapping by number of block, from 0, and 'default': {0: 2, "
        "default: 16}; null: 16, with parallel 2",
    )
    bottleneck: int | None = Field(None, ge=1, description="bottleneck size, instead of reduction_factor")
    non_linearity: NonLinearity | None = Field(
        None, description="activation between the two maps; null: relu, with houlsby swish"
    )
    scaling: float | None = Field(
        None,
        gt=0,
        description="factor of the adapter's output; null: 1, with parallel 4",
        json_schema_extra=usual(0.05, 20),
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the adapter's output while training", json_schema_extra=usual(0, 0.5)
    )
    init: Init = Field(
        "identity",
        description="identity: up starts at zero, so that the model starts as the base; bert (AdapterHub's "
        "default, standard deviation 0.02) and houlsby (0.01, truncated) draw small weights",
    )
    sublayers: list[str] | None = Field(
        None,
        description="attention, output (feed-forward) and cross (cross-attention of an encoder-decoder); "
        "null: the placement's",
    )
    leave_out: list[int] = Field(
        [], description="numbers of the blocks that get no adapter, from 0, through encoder and decoder"
    )
    places: dict[str, Annotated[str, AfterValidator(regex)]] | None = Field(
        None, description="for any other model: regular expressions for whole module paths, by a name of your choice"
    )
    start_from: str | None = Field(
        None, description="folder of an AdapterHub adapter to continue; it sets all options that shape the adapter"
    )

    @field_validator("sublayers", "places")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value is not None and not value:
            raise ValueError("is empty, so that no adapter remains; name some, or leave it out")
        return value

    @model_validator(mode="after")
    def _fill_in(self) -> AdapterConfig:
        follow(self, adapterhub_format.read_config, (*SHARED, "sublayers", "reduction_factor", "leave_out"))
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise RecipeError(
                f"strategy.bottleneck {self.bottleneck} and strategy.reduction_factor {self.reduction_factor} both say "
                "how narrow the adapter is. Leave one out."
            )
        for key, value in PRESETS[self.placement].items():
            if getattr(self, key) is None and not (key == "reduction_factor" and self.bottleneck is not None):
                setattr(self, key, value)
        return self

    def size(self, width: int, layer: int) -> int:
        """Return the bottleneck's size for a width, in the block with this number."""
        if self.bottleneck is not None:
            return self.bottleneck
        factor = self.reduction_factor
        if isinstance(factor, dict):
            if str(layer) not in factor and "default" not in factor:
                raise RecipeError(f"strategy.reduction_factor has no entry for layer {layer} and no 'default'.")
            factor = factor.get(str(layer), factor.get("default"))
        return max(1, int(width // factor))


class Adapter(Strategy):
    """Small bottlenecks after frozen sublayers (Houlsby et al. 2019; Pfeiffer et al. 2020; He et al. 2021)."""

    name = "adapter"
    traits = StrategyTraits(supports_sharding=True, learning_rate=1e-3)
    Config = AdapterConfig
    paper = (
        "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751; "
        "Pfeiffer et al. 2020, AdapterFusion, arXiv:2005.00247; "
        "He et al. 2021, Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv:2110.04366"
    )

    _places: Sequence[Place] = ()

    def prepare(self, loaded: LoadedModel) -> None:
        module = loaded.module
        self._places = self._choose(module)
        modules = dict[str | None, nn.Module](module.named_modules())
        freeze_base(loaded)
        for place in self._places:
            layer, reads = modules[place.path], READS[self.config.placement]
            if reads == "sum" and place.residual is None:
                reads = "output"  # only for blocks that are known is it known what h is added to
            observed = None if place.residual == place.path else modules.get(place.residual)
            insert(layer, self._bottleneck(place, layer, module), reads, observed, modules.get(place.norm))
        if self.config.start_from is not None:
            require_base_of(Path(self.config.start_from), loaded)
            self.load(loaded, Path(self.config.start_from), starting=True)

    def matches(self) -> dict[str, list[str]]:
        names = dict.fromkeys(place.sublayer for place in self._places)
        return {name: [place.path for place in self._places if place.sublayer == name] for name in names}

    @property
    def starts_from(self) -> str | None:
        return self.config.start_from

    def loading_options(self) -> dict[str, Any]:
        # The run's own adapter has all that came from start_from.
        return self.config.model_dump(mode="json") | {"start_from": None}

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write an AdapterHub adapter: configuration and weights, and the head's if a head trains.

        For a model that AdapterHub does not know, the same under ftengine's own file names.
        """
        (head, inside), own = self._whole(loaded), self._own(loaded.module)
        weights = TRAINED_FILE if own else adapterhub_format.WEIGHTS_FILE
        adapterhub_format.write_tensors(directory, weights, self._tensors(loaded.module))
        adapterhub_format.write_tensors(directory, adapterhub_format.NEW_MODULES_FILE, inside)
        if head:
            adapterhub_format.write_tensors(directory, adapterhub_format.HEAD_FILE, head)
            if not own:
                adapterhub_format.write_head_config(directory, loaded.module, loaded.source)
        adapterhub_format.write_config(directory, self._hub_config(), loaded.module, loaded.source, own)

    def _own(self, module: Any) -> bool:
        """Return whether nothing but ftengine can run the result."""
        kind = getattr(getattr(module, "config", None), "model_type", None)
        return self.config.places is not None or kind not in adapterhub_format.MODEL_TYPES

    def _choose(self, module: nn.Module) -> list[Place]:
        config = self.config
        places = find(module) if config.places is None else find_named(module, config.places)
        present = list(dict.fromkeys(place.sublayer for place in places))
        wanted = config.sublayers or (present if config.places else SUBLAYERS[config.placement])
        unknown = [name for name in wanted if name not in present]
        # The placement's own list is a wish: a block of convolutions has no attention.
        if unknown and (config.sublayers is not None or len(unknown) == len(wanted)):
            what = f"{unknown[0]!r} is not a sublayer of {type(module).__name__}"
            raise NoMatch(f"strategy.sublayers: {what}; it has {', '.join(present)}.")
        last = max(place.layer for place in places)
        factors = config.reduction_factor if isinstance(config.reduction_factor, dict) else {}
        numbers = [int(layer) for layer in factors if layer != "default"]
        for option, layers in (("leave_out", config.leave_out), ("reduction_factor", numbers)):
            if beyond := [layer for layer in layers if not 0 <= layer <= last]:
                raise NoMatch(f"strategy.{option}: no block {beyond[0]}; the model's blocks are 0 to {last}.")
        chosen = [place for place in places if place.sublayer in wanted and place.layer not in config.leave_out]
        if not chosen:
            raise NoMatch("strategy.leave_out leaves out every block; no adapter remains.")
        if config.placement == "parallel":
            for place in chosen:
                _refuse_unlike_input(place, module.get_submodule(place.path))
        return chosen

    def _bottleneck(self, place: Place, layer: nn.Module, module: nn.Module) -> Bottleneck:
        config, size = self.config, self.config.size(place.width, place.layer)
        own_input = config.placement == "parallel" and place.channels_first and place.residual is None
        device = next((p.device for p in (*layer.parameters(), *module.parameters())), torch.device("cpu"))
        # Drawn on the CPU, so that one seed gives one adapter on every kind of device; in float32 whatever the base
        # holds, because bfloat16 swallows small updates.
        with torch.device("meta" if device.type == "meta" else "cpu"):
            bottleneck = Bottleneck(
                *(place.width, size, config.non_linearity, config.scaling, config.dropout, place.channels_first),
                reads=input_width(layer) if own_input else 0,
            )
            initialise(bottleneck, config.init)
        return bottleneck.to(device)

    def _hub_config(self) -> adapterhub_format.HubConfig:
        sublayers, factor = sorted({place.sublayer for place in self._places}), self.config.reduction_factor
        if (size := self.config.bottleneck) is not None:
            factor = {str(p.layer): reduction_factor(p.width, size) for p in self._places}
            factor = next(iter(factor.values())) if len(set(factor.values())) == 1 else factor
        options = {key: getattr(self.config, key) for key in (*SHARED, "dropout", "leave_out", "init")}
        return adapterhub_format.HubConfig(sublayers=sublayers, reduction_factor=factor, **options)

    def _tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the adapters' tensors by AdapterHub's keys."""
        return {
            adapterhub_format.key(place.key, name): tensor
            for place in self._places
            for name, tensor in module.get_submodule(place.path).bottleneck.named_parameters()
        }

    def _whole(self, loaded: LoadedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the modules that train whole, by name: (the head, modules within the base model)."""
        prefix = getattr(loaded.module, "base_model_prefix", "") or ""
        base = hasattr(loaded.module, prefix)
        whole = whole_tensors(loaded)
        inside = {name: tensor for name, tensor in whole.items() if base and name.startswith(f"{prefix}.")}
        return {name: tensor for name, tensor in whole.items() if name not in inside}, inside

    def load(self, loaded: LoadedModel, directory: Path, *, starting: bool = False) -> None:
        """Read an AdapterHub adapter, trained here or by the adapters library, into a prepared model.

        An adapter to start from (`starting`) may lack a head and other new modules, which then start afresh. Refused
        are a folder without such an adapter (RunError), and other options, keys or shapes (BaseMismatch).
        """
        adapter = adapterhub_format.read_config(directory)
        module, origin = loaded.module, str(directory)
        if adapter.name != adapterhub_format.NAME and self._own(module):
            raise RunError(
                f"the adapter in {origin!r} is AdapterHub's, of a {type(module).__name__}; its library is known to "
                f"compute what ftengine does for {', '.join(sorted(adapterhub_format.MODEL_TYPES))} alone. Use that "
                "adapter with the adapters library."
            )
        require_same(self.config, adapter, SHARED, directory)
        head, inside = self._whole(loaded)
        stored_head = adapterhub_format.read_head(directory)
        stored_inside = adapterhub_format.read_new_modules(directory)
        if starting:
            head, inside = head if stored_head else {}, inside if stored_inside else {}
        targets = adapterhub_format.without_prefix(self._tensors(module), module) | head | inside
        tensors = adapterhub_format.read_weights(directory, adapter.name)
        sources = adapterhub_format.without_prefix(tensors, module) | stored_inside
        copy_into(targets, sources | _without_the_bases_own(stored_head, head, module, origin), origin)


def _without_the_bases_own(
    stored: dict[str, Tensor], head: dict[str, Tensor], module: nn.Module, origin: str
) -> dict[str, Tensor]:
    """Leave out tensors of the base that do not train: the library saves a language model's head as well."""
    own = module.state_dict()
    others = {name: tensor for name, tensor in stored.items() if name not in head and name in own}
    for name, tensor in others.items():
        if not own[name].is_meta and not torch.equal(own[name].cpu(), tensor.to(own[name].dtype)):
            raise BaseMismatch(
                f"{origin!r} holds a trained {name!r}, which stays frozen here. Load that adapter with the adapters "
                "library, or save it without its head."
            )
    return {name: tensor for name, tensor in stored.items() if name not in others}


def _refuse_unlike_input(place: Place, layer: nn.Module) -> None:
    """Refuse a parallel adapter whose input cannot be mapped to the output's shape."""
    reads = input_width(layer)
    if place.residual is not None:  # a sublayer of a known block
        return
    if not keeps_grid(layer):
        why = "has convolutions whose padding makes another shape of its input"
    elif not place.channels_first and reads not in (0, place.width):
        why = f"reads {reads} channels and gives {place.width}"
    else:
        return
    raise NoMatch(f"strategy.placement parallel: {place.path!r} {why}. Use pfeiffer or houlsby, which read the output.")


def reduction_factor(width: int, size: int) -> float:
    """Return a reduction factor for which width // factor is `size`, despite rounding."""
    exact = width / size
    return exact if int(width // exact) == size else width / (size + 0.5)
