"""The sublayers of known models as data: one row per kind of block, recognised by the names of its children.

A sublayer computes h, which the model adds to a residual and may normalise: BERT has norm(x + h), GPT-2 x + h. Blocks
of other kinds are reached by naming modules in a recipe.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from ftengine.errors import NoMatch
from ftengine.model import matching, near_modules
from ftengine_builtins.strategies.adapter_layers import AdaptedLayer


@dataclass(frozen=True)
class Sublayer:
    """One sublayer; paths are relative to its block, and "" is the block itself.

    Args:
        output: the module whose (first) output is h.
        width: a module whose last linear or convolution has as many output channels as h.
        residual: the module whose first input is the residual; None if h has none.
        norm: the norm of h + residual; None if there is none.
        key: where AdapterHub keeps its adapters.
    """

    output: str
    width: str
    residual: str | None = None
    norm: str | None = None
    key: str = ""


class Block:
    """A kind of block.

    Args:
        children: the names of all its children, separated by spaces; a block with further children is of another kind.
        optional: further children that it may have, which do not matter here.
        key: (pattern, replacement) from a block's path to AdapterHub's, if transformers has renamed the block since.
        sublayers: sublayers by name.
    """

    def __init__(
        self, children: str, optional: str = "", key: tuple[str, str] | None = None, **sublayers: Sublayer
    ) -> None:
        self.children, self.optional = set(children.split()), set(optional.split())
        self.key, self.sublayers = key, sublayers


def _t5(number: int, inner: str) -> Sublayer:
    layer = f"layer.{number}"
    return Sublayer(f"{layer}.dropout", f"{layer}.{inner}", f"{layer}.layer_norm", key=layer)


BLOCKS = (
    # BERT, RoBERTa, ELECTRA, DeBERTa, …
    Block(
        "attention intermediate output",
        attention=Sublayer(
            *("attention.output.dropout", "attention.output", "attention", "attention.output.LayerNorm"),
            key="attention.output",
        ),
        output=Sublayer("output.dropout", "output", "intermediate", "output.LayerNorm", "output"),
    ),
    # DistilBERT
    Block(
        "attention sa_layer_norm ffn output_layer_norm",
        attention=Sublayer("attention", "attention", "attention", "sa_layer_norm", "attention_adapters"),
        output=Sublayer("ffn", "ffn", "ffn", "output_layer_norm", "output_adapters"),
    ),
    # GPT-2
    Block(
        "ln_1 attn ln_2 mlp",
        attention=Sublayer("attn", "attn.c_proj", "ln_1", key="attention_adapters"),
        output=Sublayer("mlp", "mlp.c_proj", "ln_2", key="output_adapters"),
        optional="crossattention ln_cross_attn",
    ),
    # Llama, Mistral, Qwen, Granite, OLMo, …; with a mixture of experts as well, so the attention says the width
    Block(
        "self_attn mlp input_layernorm post_attention_layernorm",
        attention=Sublayer("self_attn", "self_attn.o_proj", "input_layernorm", key="attention_adapters"),
        output=Sublayer("mlp", "self_attn.o_proj", "post_attention_layernorm", key="output_adapters"),
    ),
    # T5's decoder, then its encoder
    Block(
        "layer",
        attention=_t5(0, "SelfAttention.o"),
        cross=_t5(1, "EncDecAttention.o"),
        output=_t5(2, "DenseReluDense.wo"),
    ),
    Block("layer", attention=_t5(0, "SelfAttention.o"), output=_t5(1, "DenseReluDense.wo")),
    # ViT, DeiT, AST, …, whose blocks transformers 5 renamed; YOLOS and others still have the older form
    Block(
        "attention layernorm_before layernorm_after mlp dropout",
        attention=Sublayer("attention", "attention.o_proj", "layernorm_before", key="attention_adapters"),
        output=Sublayer("mlp", "mlp.fc2", "layernorm_after", key="output.output_adapters"),
        key=(r"layers\.(\d+)$", r"encoder.layer.\1"),
    ),
    Block(
        "attention layernorm_before layernorm_after intermediate output",
        attention=Sublayer("attention", "attention.output", "layernorm_before", key="attention_adapters"),
        output=Sublayer("output.dropout", "output.dense", "layernorm_after", key="output.output_adapters"),
    ),
    # ViT in timm, and what has its block; without ls1 and ls2, norms may follow what they precede here
    Block(
        "norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2",
        attention=Sublayer("drop_path1", "attn.proj", "norm1", key="attention_adapters"),
        output=Sublayer("drop_path2", "mlp.fc2", "norm2", key="output_adapters"),
    ),
    # ViT in torchvision
    Block(
        "ln_1 self_attention dropout ln_2 mlp",
        attention=Sublayer("dropout", "self_attention.out_proj", "ln_1", key="attention_adapters"),
        output=Sublayer("mlp", "mlp", "ln_2", key="output_adapters"),
    ),
    # ResNet in transformers; in torchvision and timm
    Block("shortcut layer activation", output=Sublayer("", "layer")),
    Block(
        "conv1 bn1 conv2 bn2",
        output=Sublayer("", ""),
        optional="conv3 bn3 relu act1 act2 act3 aa se drop_block drop_path downsample",
    ),
)


@dataclass(frozen=True)
class Place:
    """One place for an adapter in a model; paths are whole.

    Args:
        sublayer: its kind: "attention", "output", "cross", or the recipe's name.
        path, key, residual, norm: as in `Sublayer`; for a place that a recipe names, the residual is unknown.
        layer: number of the block, from 0; as AdapterHub counts, through encoder and decoder.
        width: channels of h.
        channels_first: h is (batch, width, ...).
    """

    sublayer: str
    path: str
    layer: int
    width: int
    channels_first: bool
    key: str
    residual: str | None = None
    norm: str | None = None


def find(module: nn.Module) -> list[Place]:
    """Find the places in a model of known blocks (NoMatch: no known block; the message lists modules to name)."""
    places: list[Place] = []
    blocks = [(path, part, kind) for path, part in module.named_modules() if (kind := _kind(part)) is not None]
    for layer, (path, part, block) in enumerate(blocks):
        for name, sublayer in block.sublayers.items():
            output, residual, norm = (
                None if at is None else _join(path, at) for at in (sublayer.output, sublayer.residual, sublayer.norm)
            )
            key = _join(re.sub(*block.key, path) if block.key else path, sublayer.key)
            places.append(Place(name, output, layer, *_width(part.get_submodule(sublayer.width)), key, residual, norm))
    if not places:
        repeated, example = _repeated(module)
        raise NoMatch(
            f"strategy adapter does not know where the sublayers of {type(module).__name__} are. Name the modules "
            "after which adapters go by regular expressions for whole paths, e.g. "
            f"strategy.places={{output: '{example}'}}.{repeated}"
        )
    _refuse_obstacles(module, places)
    return places


def find_named(module: nn.Module, patterns: Mapping[str, str]) -> list[Place]:
    """Find the places that a recipe names: each module whose whole path matches a pattern (NoMatch: there is none)."""
    modules = dict(module.named_modules())
    places: list[Place] = []
    for name, pattern in patterns.items():
        paths = matching(filter(None, modules), pattern, full_match=True)
        if not paths:
            raise NoMatch(
                f"strategy.places.{name}: '{pattern}' matches no module of {type(module).__name__}."
                f"{near_modules(pattern, modules)}{_repeated(module)[0]} Patterns are for whole paths."
            )
        for layer, path in enumerate(paths):
            outer = next((other for other in paths if path.startswith(f"{other}.")), None)
            if outer is not None:
                raise NoMatch(
                    f"strategy.places.{name}: '{pattern}' matches {outer!r} and {path!r} inside of it. "
                    "Write a pattern that ends at one of them."
                )
            width, channels_first = _width(modules[path])
            if not width:
                raise NoMatch(
                    f"strategy.places.{name}: '{pattern}' matches {path!r}, a {type(modules[path]).__name__} without a "
                    "linear layer or convolution, so its width is unknown. Name the module around it."
                )
            places.append(Place(name, path, layer, width, channels_first, path))
    _refuse_obstacles(module, places)
    return places


def _kind(part: nn.Module) -> Block | None:
    names = {name for name, _ in part.named_children()}
    for block in BLOCKS:
        if block.children <= names <= block.children | block.optional:
            paths = {None, *dict(part.named_modules())}
            if all(
                {sublayer.output, sublayer.width, sublayer.residual, sublayer.norm} <= paths
                for sublayer in block.sublayers.values()
            ):
                return block
    return None


def _refuse_obstacles(module: nn.Module, places: Sequence[Place]) -> None:
    times = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    for path in dict.fromkeys(path for place in places for path in (place.path, place.residual) if path is not None):
        part = module.get_submodule(path)
        if isinstance(part, AdaptedLayer):
            why = "has an adapter already"
        elif "bottleneck" in dict(part.named_children()):
            why = "has a part of the adapter's own name, 'bottleneck'; name the module in there"
        elif times[id(part)] > 1:
            why = "is one module under several names, so that one adapter would act in several places"
        elif "forward" in vars(part):
            why = "has its forward replaced on the instance, as accelerate's device_map does; load on one device"
        else:
            continue
        raise NoMatch(f"strategy adapter: {path!r}, a {type(part).__name__}, {why}.")
    if repeated := [path for path, count in Counter(place.path for place in places).items() if count > 1]:
        raise NoMatch(f"strategy.places: {repeated[0]!r} is matched by more than one pattern; one adapter fits there.")


def _channels(part: nn.Module) -> Iterator[tuple[int, int, bool]]:
    """Yield (channels in, channels out, channels first) of the linear layers and convolutions in a module."""
    for layer in part.modules():
        if isinstance(layer, Conv1D):
            yield layer.nx, layer.nf, False
        elif isinstance(getattr(layer, "out_features", None), int):
            yield layer.in_features, layer.out_features, False
        elif isinstance(getattr(layer, "out_channels", None), int):
            yield layer.in_channels, layer.out_channels, True


def _width(part: nn.Module) -> tuple[int, bool]:
    """Return (output channels, channels first) of a module, by its last layer; 0 if unknown."""
    *_, (_, width, channels_first) = [(0, 0, False), *_channels(part)]
    return width, channels_first


def input_width(part: nn.Module) -> int:
    """Return the input channels of a module's first layer; 0 if unknown."""
    return next(_channels(part), (0, 0, False))[0]


def keeps_grid(part: nn.Module) -> bool:
    """Return whether each convolution in a module keeps its input's grid, or every s-th point of it."""
    return all(_is_centred(layer) for layer in part.modules() if isinstance(layer, _ConvNd))


def _is_centred(layer: _ConvNd) -> bool:
    if layer.transposed or layer.padding == "same":
        return not layer.transposed
    padding = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
    return all(2 * p == d * (k - 1) for p, d, k in zip(padding, layer.dilation, layer.kernel_size, strict=True))


def _join(path: str, inner: str) -> str:
    return ".".join(filter(None, (path, inner)))


def _repeated(module: nn.Module) -> tuple[str, str]:
    """Return modules below numbered blocks that have a width: as patterns of YAML, and the last one."""
    patterns = [
        re.sub(r"\.\d+\.", r"\\.\\d+\\.", path)
        for path, part in module.named_modules()
        if re.search(r"\.\d+\.[^.]*[^.\d][^.]*$", path) and _width(part)[0]
    ]
    shown = list(dict.fromkeys(patterns))
    listed = ", ".join(f"'{pattern}'" for pattern in shown[:8])  # repr would double the backslashes
    text = f" Its blocks hold {listed}{', …' if len(shown) > 8 else ''}." if shown else ""
    return text, shown[-1] if shown else ".*mlp"
