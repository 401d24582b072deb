"""Packing examples into one row without padding, so that each is read as if it were alone.

Models of transformers that make their attention masks of `position_ids` (masking_utils) begin a new sequence wherever
positions restart at 0; flash attention then computes each sequence by itself, other kinds mask the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ftengine.equivalence import STATES, row_distances
from ftengine.errors import RecipeError
from ftengine.model.in_float32 import flash_of
from ftengine.model.probing import probed
from ftengine.model.token_loss import states_of
from ftengine.model.tokens import IGNORED

CHECKED = (64, 1, 31)
"""Tokens of the examples by which a model is checked: one longer than convolutions and short windows reach, one that
they reach across, and one behind both."""

LOOKED_AT = "ftengine_packing"
"""Under this name, transformers has an attention that looks at what it is told."""


class Packer:
    """Packs batches for models that keep packed examples apart, which it tests first."""

    def __init__(self) -> None:
        self._checked: WeakSet[nn.Module] = WeakSet()

    def pack(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the model's inputs and the labels, in one row each.

        Args:
            batch: input_ids, attention_mask and labels, (B, T) each.

        Returns:
            input_ids and position_ids, and labels, (1, tokens) each; the first label of an example is IGNORED, which
            the example before it would have to predict.

        Raises:
            RecipeError: the model's output for packed examples is another than for each alone.
        """
        if model not in self._checked:
            _require_apart(model, batch)
            self._checked.add(model)
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORED
        return in_one_row(batch), labels[batch["attention_mask"].bool()][None]


def in_one_row(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return padded rows concatenated into one, with each token's position within its own row."""
    mask = batch["attention_mask"].bool()
    positions = mask.cumsum(1) - 1
    return {"input_ids": batch["input_ids"][mask][None], "position_ids": positions[mask][None]}


def _require_apart(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    tokens = batch["input_ids"][batch["attention_mask"].bool()]
    tokens = tokens.repeat(-(-sum(CHECKED) // len(tokens)))[: sum(CHECKED)]
    examples = [{"input_ids": part[None]} for part in tokens.split(CHECKED)]
    positions = torch.cat([torch.arange(count, device=tokens.device) for count in CHECKED])
    flash, reached = flash_of(model) is not None, True
    try:
        with probed(model):
            separate = [states_of(model, {**x, "attention_mask": torch.ones_like(x["input_ids"])}) for x in examples]
            row = {"input_ids": tokens[None], "position_ids": positions[None]}
            packed = states_of(model, row)
            if flash:
                reached = _positions_reach_attention(model, row)
    except Exception as error:  # a forward without position_ids, or one that has no float32, fails in any way
        raise RecipeError(
            f"task.packing is true, and {type(model).__name__} (as the strategy prepared it) cannot be tested "
            f"for packing in float32 ({type(error).__name__}: {error}). Set task.packing to false."
        ) from error
    if not reached:
        raise RecipeError(
            f"task.packing is true, and {type(model).__name__} (as the strategy prepared it) does not tell flash "
            "attention where packed examples begin, so that each would see those before it. Set task.packing to false, "
            'or model.options.attn_implementation to "sdpa".'
        )
    complete = packed.shape[1] == sum(CHECKED) == sum(part.shape[1] for part in separate)
    if not complete or not row_distances(packed[0], torch.cat(separate, 1)[0]).max() <= STATES:
        raise RecipeError(
            f"task.packing is true, and {type(model).__name__} (as the strategy prepared it) gives different outputs "
            "for examples packed into one row and for each alone. Set task.packing to false."
        )


def _positions_reach_attention(model: Any, row: Mapping[str, Tensor]) -> bool:
    """Return whether every flash attention call learns where the examples of a row begin.

    It has no mask: transformers reads that from `position_ids` or `cu_seq_lens_q`, which the model must pass on.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import flash_attention_mask

    reached: list[bool] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        positions, starts = kwargs.get("position_ids"), kwargs.get("cu_seq_lens_q")
        packed = positions is not None and positions.numel() == sum(CHECKED) and int((positions == 0).sum())
        reached.append(packed == len(CHECKED) or starts is not None)
        return sdpa_attention_forward(*args, **kwargs)

    before = model.config._attn_implementation
    AttentionInterface.register(LOOKED_AT, attend)
    AttentionMaskInterface.register(LOOKED_AT, flash_attention_mask)
    try:
        model.set_attn_implementation(LOOKED_AT)
        states_of(model, row)
    finally:
        model.set_attn_implementation(before)
    return bool(reached) and all(reached)
