"""Test batches without data, and a model's outputs for them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.errors import InputError
from ftengine.model.in_float32 import in_float32
from ftengine.model.modes import evaluating

OPTIONAL = {"attention_mask", "token_type_ids", "use_cache"}
"""What tokenizers and tasks give of a batch beside the tokens, and a plain module's forward may not have."""


def probe_tokens(module: nn.Module) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, (2, 16) int64 of random tokens.

    The end-of-text token is at the end of each row and nowhere else: classifiers of encoder-decoders read its state.

    Raises:
        InputError: the module has no token embeddings.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = _token_embeddings(module).num_embeddings
    ids = torch.randint(tokens, (2, 16), generator=generator)
    end = getattr(getattr(module, "config", None), "eos_token_id", None)
    if isinstance(end, int) and end < tokens:
        ids[ids == end] = (end + 1) % tokens
        ids[:, -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def raw_outputs(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return a model's logits for a batch, without its labels and arguments that a plain module does not accept."""
    takes = inspect.signature(module.forward).parameters
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    left_out = {"labels"} if everything else {"labels", *(OPTIONAL - takes.keys())}
    output = module(**{key: value for key, value in batch.items() if key not in left_out})
    return output.logits if hasattr(output, "logits") else output


@contextmanager
def visible(model: nn.Module) -> Iterator[None]:
    """Fill trainable tensors of zeros with small numbers, so that what a strategy adds has an effect."""
    from torch.distributed.tensor import DTensor  # a second of importing, which lists of plugins do without

    generator, zeros = torch.Generator().manual_seed(0), list[tuple[nn.Parameter, Tensor]]()
    for parameter in model.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor) and not parameter.any():
            zeros.append((parameter, parameter.data))
            parameter.data = (torch.randn(parameter.shape, generator=generator) / 50).to(parameter)
    try:
        yield
    finally:
        for parameter, own in zeros:
            parameter.data = own


@contextmanager
def probed(model: nn.Module) -> Iterator[None]:
    """Within the block, compute in float32, without dropout and gradients, and with added parts made `visible`."""
    try:
        with torch.no_grad(), evaluating(model), in_float32(model), visible(model):
            yield
    finally:
        torch.clear_autocast_cache()  # casts made here have no graph


def _token_embeddings(module: nn.Module) -> nn.Embedding:
    """Return a model's token embeddings: those that it names, else its first table."""
    getter = getattr(module, "get_input_embeddings", None)
    if getter is not None:
        return getter()
    table = next((part for part in module.modules() if isinstance(part, nn.Embedding)), None)
    if table is None:
        raise InputError(
            f"{type(module).__name__} has no token embeddings, so a batch of random tokens cannot be made for it. Give "
            "its task the methods `probe` and `outputs`."
        )
    return table
