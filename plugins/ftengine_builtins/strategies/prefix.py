"""Prefix tuning: keys and values before those of the text are all that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RecipeError
from ftengine_builtins.strategies import prompt_format
from ftengine_builtins.strategies.prefix_stack import (
    KeysAndValues,
    KeyShape,
    Prefixed,
    configured_shape,
    key_shape,
    keys_and_values,
)
from ftengine_builtins.strategies.prompt_base import VirtualTokenOptions, VirtualTokenStrategy
from ftengine_builtins.strategies.prompt_format import PromptConfig
from ftengine_builtins.strategies.prompt_initial import starting_tokens
from ftengine_builtins.strategies.prompt_stack import become, cache_name, is_encoder_decoder


class PrefixOptions(VirtualTokenOptions):
    """Options of prefix tuning."""

    peft_type = "PREFIX_TUNING"

    init: Literal["vocabulary", "text", "random"] = Field(
        "vocabulary",
        description="what keys and values start as: the model's own for tokens drawn from the vocabulary or for a "
        "text, or normal random numbers of their scale",
    )
    lr_ratio: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="learning rate of virtual tokens over train.learning_rate"
    )
    projection: int | None = Field(
        None, ge=1, description="hidden width of a network that makes the prefix while training; starts at random"
    )

    @model_validator(mode="after")
    def _projection_starts_at_random(self) -> PrefixOptions:
        if self.projection is None:
            return self
        for option, others in (("start_from", [None]), ("init", ["random"])):
            if option in self.model_fields_set and getattr(self, option) not in others:
                raise RecipeError(
                    f"strategy.projection is {self.projection} and strategy.{option} is {getattr(self, option)!r}. A "
                    "projection starts at random; leave one of the two out."
                )
        self.init = "random"
        return self


class Prefix(VirtualTokenStrategy):
    """Keys and values before those of the text in every layer of a frozen model (Li & Liang 2021, arXiv:2101.00190).

    For decoders, and for encoders that take a cache (BERT, RoBERTa). Unlike a LoRA, a prefix changes the outputs
    before the first step.
    """

    name = "prefix"
    Config = PrefixOptions
    citation = "Li & Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, arXiv:2101.00190"

    def enter(self, loaded: LoadedModel, stack: Any) -> None:
        if is_encoder_decoder(loaded.module):
            raise RecipeError(
                f"strategy prefix puts keys and values into the cache of what reads the input, and the encoder of "
                f"{type(loaded.module).__name__} has none. Set strategy.name=prompt."
            )
        if cache_name(type(stack)) is None:
            raise RecipeError(
                f"strategy prefix puts keys and values into a model's cache, but {type(stack).__name__} has none. Set "
                "strategy.name=prompt, or choose another strategy."
            )
        shape, start = self._start(loaded, stack)
        stack.key_shape = shape
        stack.prefix = KeysAndValues(start, shape.numbers, self.config.projection)
        become(stack, Prefixed)
        # Checkpointed layers get no cache: they compute again what they would have put into it.
        loaded.module.supports_gradient_checkpointing = False  # type: ignore[assignment]

    def reopened(self) -> dict[str, Any]:
        return super().reopened() | {"projection": None}  # what it came to is in the adapter

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a PEFT prefix: adapter_config.json and adapter_model.safetensors; a projection is multiplied out."""
        stack = _stack(loaded)
        prompt_format.write(loaded, directory, _described(stack), stack.prefix.values().detach())

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read a PEFT prefix, trained here or by PEFT, into a prepared model; a projection makes way for its result.

        Raises:
            RunError: the folder is no prefix that can be read.
            BaseMismatch: number or shape of the virtual tokens differ, or keys are missing or unexpected.
        """
        stack = _stack(loaded)
        prefix = stack.prefix
        if prefix.projection is not None:
            prefix = KeysAndValues(torch.empty_like(prefix.values()), stack.key_shape.numbers, None)
        expected = _described(stack)
        config, tensors = prompt_format.read(directory, expected)
        if config != expected:
            raise BaseMismatch(
                f"the adapter in {str(directory)!r} has keys of {config.num_layers} layers and "
                f"{config.num_attention_heads} heads, {config.token_dim} numbers in all of a layer; this model has "
                f"{expected.num_layers}, {expected.num_attention_heads} and {expected.token_dim}. It was trained on "
                "another base."
            )
        prompt_format.fill(loaded, prefix.embeddings, tensors, str(directory))
        stack.prefix = prefix

    def _start(self, loaded: LoadedModel, stack: Any) -> tuple[KeyShape, Tensor]:
        """Return the shape of keys, and (virtual tokens, numbers) to start from or for a projection to start from."""
        config, embedding = self.config, stack.get_input_embeddings()
        count, device = config.virtual_tokens, embedding.weight.device
        ids = starting_tokens(loaded, embedding, config.init, config.text, count)
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


def _stack(loaded: LoadedModel) -> Prefixed:
    return next(module for module in loaded.module.modules() if isinstance(module, Prefixed))


def _described(stack: Prefixed) -> PromptConfig:
    shape = stack.key_shape
    return PromptConfig(
        PrefixOptions.peft_type, len(stack.prefix.embeddings), shape.heads * shape.width, shape.layers, shape.heads
    )
