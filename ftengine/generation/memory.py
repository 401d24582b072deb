"""The memory that drawing answers takes beside a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftengine.generation.answers import SLOTS

if TYPE_CHECKING:
    from ftengine.api import LoadedModel

ROOM = 1.5
"""How much larger than needed the room for keys and values may be, since it grows by half."""
CHOICE = 4
"""Tensors of float32 in the shape of the logits while tokens are drawn."""


def drawing_bytes(loaded: LoadedModel, answers: int, each: int, new: int, longest: int) -> int:
    """Return the bytes of keys, values and logits while answers are drawn in slots.

    Args:
        answers: that are drawn, `each` of a prompt.
        new: most tokens of an answer.
        longest: most tokens of a prompt with its answer.
    """
    together = min(SLOTS, answers)
    prompts = -(-together // each) + 1  # the next one is read while the last answers grow
    of_token, vocabulary = _of_token(loaded.module)
    kept = together * new + prompts * (longest - new)
    return int(ROOM * kept * of_token) + together * vocabulary * 4 * CHOICE


def _of_token(module: Any) -> tuple[int, int]:
    """Return the bytes of a token's keys and values in all layers, and the size of the vocabulary."""
    import torch

    from ftengine.model.modes import evaluating

    device, sizes = next(module.parameters()).device, list[int]()
    with torch.no_grad(), evaluating(module):
        for length in (1, 2):
            output = module(input_ids=torch.zeros(1, length, dtype=torch.long, device=device), use_cache=True)
            layers = [layer for value in output.values() for layer in getattr(value, "layers", ())]
            kept = [x for layer in layers for x in vars(layer).values() if isinstance(x, torch.Tensor)]
            sizes.append(sum(x.numel() * x.element_size() for x in kept))
    return sizes[1] - sizes[0], output.logits.shape[-1]
