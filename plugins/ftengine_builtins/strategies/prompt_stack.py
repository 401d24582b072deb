"""Virtual tokens in a model's text stack, which takes token embeddings and returns hidden states.

A stack becomes an instance of a subclass of its own class, whose forward inserts virtual tokens and calls the original
one. So heads, losses, pooling, `generate` and hooks stay unchanged.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ftengine.errors import InputError, RecipeError

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls the keys and values of past tokens: since 5.24, and before."""


class VirtualTokens:
    """Base of what a stack's subclass adds: `run` gets the original forward and its arguments by name."""

    def run(self, plain: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def virtual_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that make up the virtual tokens."""
        return []


class Prompted(VirtualTokens):
    """Prepends trained vectors to the token embeddings (Lester et al. 2021, arXiv:2104.08691).

    The first tokens of a sequence get them; later ones find them in the cache. They are removed from the hidden states,
    so that a head sees the real tokens alone, unless `keeps_prompt`.
    """

    prompt_embeddings: nn.Parameter
    """(virtual tokens, width of the token embeddings), float32."""
    keeps_prompt: bool
    get_input_embeddings: Callable[[], nn.Module]

    def virtual_parameters(self) -> list[nn.Parameter]:
        return [self.prompt_embeddings]

    def run(self, plain: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        embeddings, ids = inputs.get("inputs_embeds"), inputs.get("input_ids")
        if embeddings is None and ids is None:
            return plain(**inputs)  # which says what it misses
        count, cache = len(self.prompt_embeddings), growing_cache(inputs)
        inputs["attention_mask"] = widened(inputs.get("attention_mask"), count)
        first = cache is None or cache.get_seq_length() == 0
        shift_positions(inputs, count, also_in_front=first)
        if not first:
            return plain(**inputs)
        if embeddings is None:
            embeddings = self.get_input_embeddings()(ids)
        prompt = self.prompt_embeddings.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        inputs |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, embeddings], dim=1)}
        types = inputs.get("token_type_ids")
        if types is not None:
            inputs["token_type_ids"] = torch.cat([types.new_zeros(len(types), count), types], dim=1)
        outputs = plain(**inputs)
        return outputs if self.keeps_prompt else without_prompt(outputs, count)


class PromptedMemory(VirtualTokens):
    """A decoder whose encoder is `Prompted`: it attends to the encoder's virtual tokens as well."""

    virtual_tokens: int

    def run(self, plain: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        states, mask = inputs.get("encoder_hidden_states"), inputs.get("encoder_attention_mask")
        if states is not None and mask is not None and mask.shape[-1] + self.virtual_tokens == states.shape[1]:
            inputs["encoder_attention_mask"] = widened(mask, self.virtual_tokens)
        return plain(**inputs)


def require_fit(stack: Any, strategy: str) -> None:
    """Refuse a module that virtual tokens cannot enter (RecipeError)."""
    what = type(stack).__name__
    if any(isinstance(module, VirtualTokens) for module in stack.modules()):
        raise RecipeError(f"{what} has virtual tokens already; load the base anew.")
    if "inputs_embeds" not in parameters_of(type(stack)):
        raise RecipeError(f"strategy {strategy} needs a model that takes embeddings, but {what} takes only tokens.")
    recurrent = keeps_no_tokens(stack)
    if recurrent or getattr(stack.config, "hidden_size_per_layer_input", None):
        why = "keeps its past in recurrent states" if recurrent else "looks up token embeddings in every layer"
        raise RecipeError(f"strategy {strategy} does not fit {what}, which {why}. Choose another one, such as lora.")
    if "forward" in vars(stack):
        raise RecipeError(
            f"strategy {strategy}: {what} has its forward replaced on the instance, as accelerate's device_map does. "
            "Load the model on one device."
        )


def cache_name(stack: type) -> str | None:
    """Return the name of the argument that takes a stack's cache, or None."""
    known = parameters_of(stack)
    return next((name for name in CACHE_NAMES if name in known), None)


def keeps_no_tokens(stack: Any) -> bool:
    """Return whether all layers of a stack are recurrent, so that its cache does not count tokens."""
    if cache_name(type(stack)) is None:
        return "cache_params" in parameters_of(type(stack))  # transformers before 5.24
    kinds = getattr(DynamicCache(config=stack.config), "is_linear", ())
    return bool(kinds) and all(kinds)


def become(stack: nn.Module, kind: type[VirtualTokens]) -> None:
    """Make a stack an instance of a subclass of its class, whose forward calls `kind.run`."""
    stack.__class__ = _subclass(type(stack), kind)


@functools.cache
def _subclass(plain: type, kind: type[VirtualTokens]) -> type:
    names = parameters_of(plain)

    @functools.wraps(plain.forward)  # type: ignore[attr-defined]  # `generate` reads the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(zip(names, args, strict=False)) | kwargs
        return kind.run(self, functools.partial(plain.forward, self), inputs)  # type: ignore[attr-defined]

    # transformers knows classes by their full name: which outputs they can record, and what errors call them.
    names_of_plain = {key: getattr(plain, key) for key in ("__module__", "__qualname__")}
    return type(plain.__name__, (kind, plain), {"forward": forward, **names_of_plain})


def parameters_of(stack: type) -> list[str]:
    """Return the names of forward's arguments, in order and without self."""
    return list(inspect.signature(stack.forward).parameters)[1:]  # type: ignore[attr-defined]


def growing_cache(inputs: dict[str, Any]) -> Any:
    """Return the cache among forward's arguments, or None.

    A cache of fixed size, which `generate` chooses without counting virtual tokens, is refused (InputError).
    """
    cache = next((inputs[name] for name in CACHE_NAMES if inputs.get(name) is not None), None)
    if getattr(cache, "is_compileable", False):
        raise InputError(
            f"virtual tokens need a cache that can grow, and this is a {type(cache).__name__}. Leave out "
            "cache_implementation, or set it to 'dynamic'."
        )
    return cache


def widened(mask: Any, count: int) -> Tensor | None:
    """Extend an attention mask (B, T) by `count` virtual tokens in front.

    None stays None (InputError: other shapes).
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        form = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise InputError(f"virtual tokens need an attention mask of shape (batch, tokens), and this has {form}.")
    return torch.cat([mask.new_ones(len(mask), count), mask], dim=1)


def shift_positions(inputs: dict[str, Any], count: int, *, also_in_front: bool) -> None:
    """Shift position ids (…, T), if given, by `count` virtual tokens."""
    inputs.pop("cache_position", None)  # before transformers 5.24; models work it out from the cache
    positions = inputs.get("position_ids")
    if positions is None:
        return
    positions = positions + count
    if also_in_front:
        front = torch.arange(count, dtype=positions.dtype, device=positions.device)
        positions = torch.cat([front.expand(*positions.shape[:-1], -1), positions], dim=-1)
    inputs["position_ids"] = positions


def without_prompt(outputs: Any, count: int) -> Any:
    """Remove the first `count` positions from the hidden states (B, T, H) of a stack's outputs."""
    if isinstance(outputs, tuple):
        return (outputs[0][:, count:], *outputs[1:])
    outputs["last_hidden_state"] = outputs["last_hidden_state"][:, count:]
    if outputs.get("hidden_states") is not None:
        outputs["hidden_states"] = tuple(states[:, count:] for states in outputs["hidden_states"])
    return outputs
