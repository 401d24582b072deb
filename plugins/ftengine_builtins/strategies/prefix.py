"""Prefix tuning: only keys and values before those of the text train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import DynamicCache

from ftengine.api import LoadedModel, StrategyTraits
from ftengine.errors import BaseMismatch, RecipeError
from ftengine.model import evaluating
from ftengine.model.token_loss import is_encoder_decoder
from ftengine_builtins.strategies.prompt_stack import (
    CACHE_NAMES,
    VirtualTokens,
    become,
    cache_name,
    growing_cache,
    shift_positions,
    widened,
)
from ftengine_builtins.strategies.virtual_tokens import (
    Ratio,
    VirtualTokenOptions,
    VirtualTokensFile,
    VirtualTokenStrategy,
    starting_tokens,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Prefix(VirtualTokenStrategy):
    """Keys and values before those of the text in every layer of a frozen model (Li & Liang 2021, arXiv:2101.00190).

    For decoders, and for encoders that take a cache (BERT, RoBERTa). Unlike LoRA, it changes outputs from the start. A
    language model's prefix is saved as PEFT's; PEFT cannot run one with a head of labels.
    """

    name = "prefix"
    traits = StrategyTraits(supports_sharding=True, learning_rate=3e-3)
    paper = "Li & Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, arXiv:2101.00190"

    class Config(VirtualTokenOptions):
        class File(VirtualTokensFile):
            peft_type = "PREFIX_TUNING"

        lr_ratio: Ratio = 10.0
        projection: int | None = Field(
            None, ge=1, description="hidden width of a network that makes the prefix while training; starts at random"
        )

        @model_validator(mode="after")
        def _projection_starts_at_random(self) -> Self:
            if self.projection is None:
                return self
            for option, allowed in (("start_from", None), ("init", "random")):
                if option in self.model_fields_set and getattr(self, option) != allowed:
                    raise RecipeError(
                        f"strategy.projection is {self.projection} and strategy.{option} is {getattr(self, option)!r}. "
                        "A projection starts at random; leave one of the two out."
                    )
            self.init = "random"
            return self

    def enter(self, loaded: LoadedModel, stack: Any) -> None:
        encoder = f"the encoder of {type(loaded.module).__name__}" if is_encoder_decoder(loaded.module) else ""
        if encoder or cache_name(type(stack)) is None:
            raise RecipeError(
                "strategy prefix puts keys and values into the cache of what reads the input, and "
                f"{encoder or type(stack).__name__} has none. Set strategy.name=prompt, or choose another strategy."
            )
        shape, start = self._start(loaded, stack)
        stack.key_shape = shape
        stack.prefix = KeysAndValues(start, shape.numbers, self.config.projection)
        become(stack, Prefixed)
        # Checkpointed layers get no cache: they compute again what they would have put into it.
        loaded.module.supports_gradient_checkpointing = False  # type: ignore[assignment]

    def own(self, loaded: LoadedModel) -> bool:
        # PEFT 0.21 gives classifiers their cache by a name that transformers has changed, and refuses them.
        return loaded.head != "causal-lm"

    def loading_options(self) -> dict[str, Any]:
        return super().loading_options() | {"projection": None}  # what it came to is in the adapter

    def described(self, loaded: LoadedModel) -> tuple[VirtualTokensFile, Tensor, dict[str, Any]]:
        prefix, shape = self.prepared(loaded).prefix, self.prepared(loaded).key_shape
        file = self.config.File(
            virtual_tokens=len(prefix.embeddings),
            token_dim=shape.heads * shape.width,
            num_layers=shape.layers,
            num_attention_heads=shape.heads,
        )
        # A projection is multiplied out, so that whoever reads the file needs none.
        return file, prefix.values(), {"prefix_projection": False, "encoder_hidden_size": file.token_dim}

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read a prefix, as every strategy of virtual tokens does; a projection is replaced by its result."""
        stack, files = self.prepared(loaded), (self.config.File.read(directory), self.described(loaded)[0])
        theirs, ours = ((file.num_layers, file.num_attention_heads, file.token_dim) for file in files)
        if theirs != ours:
            raise BaseMismatch(
                f"the adapter in {str(directory)!r} is of another base: keys of {theirs[0]} layers and {theirs[1]} "
                f"heads, {theirs[2]} numbers in all of a layer; this model has {ours[0]}, {ours[1]} and {ours[2]}."
            )
        if stack.prefix.projection is not None:
            stack.prefix = KeysAndValues(torch.empty_like(stack.prefix.values()), stack.key_shape.numbers, None)
        super().load(loaded, directory)

    def _start(self, loaded: LoadedModel, stack: Any) -> tuple[KeyShape, Tensor]:
        """Return the shape of keys, and the initial values: (virtual tokens, numbers), or the projection's input."""
        config, embedding = self.config, stack.get_input_embeddings()
        count, device = config.virtual_tokens, embedding.weight.device
        ids = starting_tokens(loaded, embedding, config)
        try:
            pairs = keys_and_values(stack, ids)
            shape = key_shape(stack, pairs, count)
        except (RuntimeError, NotImplementedError):
            if device.type != "meta":
                raise
            shape = configured_shape(stack.config)  # mixtures of experts run on no meta device; weights will tell
            pairs = [(torch.empty(1, shape.heads, count, shape.width, device=device),) * 2] * shape.layers
        if config.projection is not None:
            return shape, torch.randn(count, shape.heads * shape.width).to(device)
        kept = torch.stack([tensor[0].float() for pair in pairs for tensor in pair])
        if config.init == "random":
            # One scale for each layer's keys and one for its values; drawn on the CPU, as everything random.
            kept = torch.randn(kept.shape).to(device) * kept.std(dim=(1, 2, 3), keepdim=True)
        return shape, kept.permute(2, 0, 1, 3).reshape(count, shape.numbers)


@dataclass(frozen=True)
class KeyShape:
    """The keys and values that each layer of a stack keeps of a token.

    Heads are those of keys, which queries may share (grouped-query attention); width is that of one head's key, and
    value.
    """

    layers: int
    heads: int
    width: int

    @property
    def numbers(self) -> int:
        """Numbers of a virtual token: a key and a value in every layer."""
        return 2 * self.layers * self.heads * self.width


class KeysAndValues(nn.Module):
    """Keys and values of virtual tokens, direct or through a projection with a hidden width (Li & Liang 2021, §4.3).

    (virtual tokens, numbers) with numbers = 2 · layers · heads · width, in PEFT's order: each layer's keys, then its
    values. A projection starts from (virtual tokens, its input's width).
    """

    def __init__(self, values: Tensor, numbers: int, hidden: int | None) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(values)
        self.projection = None
        if hidden is not None:
            layers = nn.Linear(values.shape[1], hidden), nn.Tanh(), nn.Linear(hidden, numbers)
            self.projection = nn.Sequential(*layers).to(values.device)

    def values(self) -> Tensor:
        """Return (virtual tokens, numbers) keys and values, in float32."""
        if self.projection is None:
            return self.embeddings
        # Not in a lower precision, so that what is saved is what was trained.
        with torch.autocast(self.embeddings.device.type, enabled=False):
            return self.projection(self.embeddings)


class Prefixed(VirtualTokens):
    """Starts every sequence with a cache that holds the prefix (Li & Liang 2021, arXiv:2101.00190).

    The text attends to it as to earlier tokens, in training and in generation.
    """

    prefix: KeysAndValues
    key_shape: KeyShape
    config: Any
    get_input_embeddings: Callable[[], Any]

    def virtual_parameters(self) -> list[nn.Parameter]:
        return list(self.prefix.parameters())

    def run(self, plain: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        given = inputs.get("input_ids") if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        if given is None:
            return plain(**inputs)  # which says what it misses
        count, cache, own = len(self.prefix.embeddings), growing_cache(inputs), False
        if cache is None:
            use = inputs.get("use_cache")
            wanted = getattr(self.config, "use_cache", False) if use is None else use
            cache, own = DynamicCache(config=self.config), not wanted
        inputs["attention_mask"] = widened(inputs.get("attention_mask"), count)
        shift_positions(inputs, count, also_in_front=False)
        if cache.get_seq_length() == 0:
            self._begin(cache, len(given))
        name = cache_name(type(self))
        outputs = plain(**{key: value for key, value in inputs.items() if key not in CACHE_NAMES}, **{name: cache})
        if own and not isinstance(outputs, tuple) and outputs.get(name) is not None:
            outputs[name] = None  # nobody asked for it; `generate` would go on with it
        return outputs

    def _begin(self, cache: DynamicCache, batch: int) -> None:
        """Put the prefix into an empty cache, for `batch` sequences."""
        weight, shape = self.get_input_embeddings().weight, self.key_shape
        device = weight.device.type
        # Keys and values of the text come in this dtype, and both go into one tensor.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        values = self.prefix.values().to(dtype).view(-1, 2 * shape.layers, shape.heads, shape.width)
        values = values.permute(1, 2, 0, 3)[:, None].expand(-1, batch, -1, -1, -1)
        for layer in range(shape.layers):
            cache.update(values[2 * layer], values[2 * layer + 1], layer)


@torch.no_grad()
def keys_and_values(stack: Any, ids: Tensor) -> list[tuple[Any, Any]]:
    """Return the keys and values that each layer keeps of tokens (T,), mostly (1, heads, T, width) each."""
    cache = DynamicCache(config=stack.config)
    embedding = stack.get_input_embeddings()
    with evaluating(stack):
        # Embeddings, because tokens would be looked through for padding, which a model without weights cannot do.
        stack(inputs_embeds=embedding(ids[None].to(embedding.weight.device)), **{str(cache_name(type(stack))): cache})
    return [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]


def key_shape(stack: Any, kept: list[tuple[Any, Any]], count: int) -> KeyShape:
    """Return the shape of the keys and values of `count` tokens (RecipeError: layers differ, or keep fewer)."""
    what = type(stack).__name__
    shapes = {tuple(tensor.shape) if isinstance(tensor, Tensor) else None for pair in kept for tensor in pair}
    heads_and_widths = {(shape[1], shape[3]) if shape and len(shape) == 4 else None for shape in shapes}
    if None in heads_and_widths or len(heads_and_widths) != 1:
        raise RecipeError(
            f"strategy prefix needs layers that all keep keys and values of one shape, but those of {what} do not. "
            "Set strategy.name=prompt, or choose another strategy."
        )
    fewest = min(shape[2] for shape in shapes if shape)
    if fewest < count:
        raise RecipeError(
            f"strategy.virtual_tokens {count} are more than {what} attends to: some of its layers keep {fewest} "
            "tokens. Lower virtual_tokens, or set strategy.name=prompt."
        )
    heads, width = heads_and_widths.pop() or (0, 0)
    return KeyShape(len(kept), heads, width)


def configured_shape(config: Any) -> KeyShape:
    """Return the shape of keys in a config, for models that cannot run without weights."""
    queries = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    return KeyShape(config.num_hidden_layers, heads, getattr(config, "head_dim", None) or config.hidden_size // queries)
