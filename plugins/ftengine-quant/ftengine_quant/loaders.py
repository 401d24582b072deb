"""Loaders that quantise the linear layers of a model that another loader reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from ftengine import api, registry_of
from ftengine.api import LoadedModel
from ftengine.errors import SourceError
from ftengine.identity import fingerprint_base
from ftengine.model import ModuleNames, find_modules

AUTO = "auto"


class QuantisingConfig(api.Config):
    """Options of all quantising loaders."""

    skip: ModuleNames = Field(
        [],
        description="modules that are not quantised, with all inside them: a list of names or paths, or a "
        "regular expression for whole paths",
    )
    loader: str | dict[str, Any] = Field(
        AUTO, description="loader of the source: its name, or a mapping with its options; auto finds it"
    )


class QuantisingLoader(api.ModelLoader):
    """Reads a model by another loader and quantises its linear layers, except heads and new modules."""

    Config = QuantisingConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._readers: dict[str, api.ModelLoader] = {}

    def quantised(self, layer: nn.Linear, path: str) -> nn.Linear:
        """Return a frozen layer with quantised weights in place of `layer` at `path`, which may be on the meta device.

        Raises:
            SourceError: a layer of this shape cannot be quantised in this way.
        """
        raise NotImplementedError

    def accepts(self, source: str) -> bool:
        """Return False, as a recipe must name a quantising loader."""
        return False

    def check_source(self, source: str) -> None:
        """Let the loader that reads the model check the source."""
        reader = self._reader(source)
        reader.check_source(source)

    def runs_code(self, source: str) -> str | None:
        """Return what code the loader that reads the model runs."""
        reader = self._reader(source)
        return reader.runs_code(source) if api.overrides(reader, "runs_code") else None

    def check_head(self, source: str, head: str) -> None:
        """Let the loader that reads the model check the head."""
        self._reader(source).check_head(source, head)

    def load_processor(self, source: str) -> Any:
        return self._reader(source).load_processor(source)

    def load(self, request: api.LoadRequest) -> api.LoadedModel:
        loaded = self._reader(request.source).load(request)
        # Of the base as it was: what is trained here belongs to the source, quantised or not.
        loaded.fingerprint = fingerprint_base(loaded)
        return self._quantise(loaded)

    def load_skeleton(self, request: api.LoadRequest) -> api.LoadedModel:
        reader = self._reader(request.source)
        if api.overrides(reader, "load_skeleton"):
            return self._quantise(reader.load_skeleton(request))
        loaded = reader.load(request)
        loaded.module.to("meta")
        return self._quantise(loaded)

    def _quantise(self, loaded: api.LoadedModel) -> api.LoadedModel:
        for path, layer in layers_to_quantise(loaded, self.config.skip).items():
            parent, _, name = path.rpartition(".")
            setattr(loaded.module.get_submodule(parent), name, self.quantised(layer, path))
        return loaded

    def _reader(self, source: str) -> api.ModelLoader:
        """Return the loader that reads a source, the same one each time: some remember what they parsed.

        Raises:
            UnknownName, RecipeError: there is no such loader, or its options are wrong.
            SourceError: it quantises as well, or none accepts the source.
        """
        if source not in self._readers:
            self._readers[source] = _reader(self.config.loader, source, f"model.loader.loader of loader {self.name!r}")
        return self._readers[source]


class BitsAndBytesLoader(QuantisingLoader):
    """Quantise a model's linear layers to 4 or 8 bits with bitsandbytes, so that adapters train on it (QLoRA)."""

    name = "bitsandbytes"
    paper = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314"

    class Config(QuantisingConfig):
        """Options of bitsandbytes."""

        bits: Literal[4, 8] = Field(4, description="bits of a weight")
        quant_type: Literal["nf4", "fp4"] = Field(
            "nf4", description="format of 4-bit weights: spaced like normally distributed weights, or floats"
        )
        double_quant: bool = Field(
            False, description="with 4 bits: quantise the scales too, which saves 0.37 bits per weight"
        )
        compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
            "auto", description="with 4 bits: dtype that weights are unpacked to; auto: the dtype of the layer's input"
        )

    def quantised(self, layer: nn.Linear, path: str) -> nn.Linear:
        from ftengine_quant.layers import BLOCK, eight_bit, four_bit

        config = self.config
        if config.bits == 8:
            return eight_bit(layer)
        if layer.in_features % BLOCK:
            raise SourceError(
                f"{path!r} has {layer.in_features:,} inputs, which is not a multiple of {BLOCK}; on CPUs bitsandbytes "
                "unpacks 4-bit weights of such layers wrongly. Add it to model.loader.skip, or set model.loader.bits=8."
            )
        return four_bit(layer, config.quant_type, config.double_quant, config.compute_dtype)


class TorchaoLoader(QuantisingLoader):
    """Quantise a model's linear layers to 8 bits with torchao; activations stay as they are."""

    name = "torchao"

    def check_source(self, source: str) -> None:
        """Check that torchao is installed, and the source."""
        if find_spec("torchao") is None:
            raise SourceError("loader 'torchao' needs the package torchao: pip install 'ftengine-quant[torchao]'.")
        super().check_source(source)

    def quantised(self, layer: nn.Linear, path: str) -> nn.Linear:
        from ftengine_quant.layers import eight_bit_by_torchao

        return eight_bit_by_torchao(layer)


def _reader(spec: str | Mapping[str, Any], source: str, where: str) -> api.ModelLoader:
    registry = registry_of()
    given = {"name": spec} if isinstance(spec, str) else {"name": AUTO, **spec}
    loader = registry.loader_of(source, given, "model.loader.loader", leave_out=(QuantisingLoader,))
    if isinstance(loader, QuantisingLoader):
        others = [e.name for e in registry.entries("loader") if not issubclass(e.cls, QuantisingLoader)]
        raise SourceError(f"{where} is {loader.name!r}, which quantises as well. Name one of {', '.join(others)}.")
    return loader


# Their forward reads the weights of these children directly, whatever class they have.
READS_CHILDREN = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def layers_to_quantise(loaded: LoadedModel, skip: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Return a model's linear layers by path, without heads, new modules, shared layers and those in `skip`.

    Modules outside of transformers' base model are heads. Heads and new modules are not quantised, because they are
    small and their errors affect the answers directly.

    Args:
        loaded: the model from its loader, on any device, including meta.
        skip: a regular expression for whole paths, or a list of paths and their endings.

    Raises:
        NoMatch: `skip` names no module.
        SourceError: no layer is left.
    """
    module: Any = loaded.module
    left = {path for paths in find_modules(module, skip, "model.loader.skip").values() for path in paths}
    left |= set(loaded.new_modules)
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    base = getattr(module, "base_model", module)
    inside = {id(part) for part in (base if isinstance(base, nn.Module) else module).modules()}
    holders = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    left |= {path for path, part in module.named_modules() if isinstance(part, READS_CHILDREN)}
    layers = {
        path: part
        for path, part in module.named_modules()
        if type(part) is nn.Linear
        and part is not output
        and id(part) in inside
        and part.weight.dtype in FLOATS
        and holders[id(part.weight)] == 1
        and not any(path == parent or path.startswith(f"{parent}.") for parent in left)
    }
    if not layers:
        raise SourceError(
            f"{loaded.source!r} ({type(module).__name__}) has no linear layer to quantise: heads and new modules stay "
            "as they are, and only torch's nn.Linear with float weights is quantised. Shorten model.loader.skip, or "
            "leave the model as it is with loader auto."
        )
    return layers
