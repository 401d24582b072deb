"""Examples one behind the other in one row, without padding, each read as if it stood alone.

Models of transformers that make their attention masks of `position_ids` (masking_utils) begin a new sequence wherever
positions begin again; flash attention computes each sequence by itself then, other kinds mask the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ftengine.errors import RecipeError
from ftengine.model.modes import evaluating, widen
from ftengine.model.token_loss import IGNORED, logits_of

CHECKED_TOKENS = 32
"""Of each of two examples, by which a model is checked; their logits are small beside a batch's."""

TOLERANCE = 16
"""Times the epsilon of the logits' dtype that their root mean square may differ, relative to their own; an example that
sees the one before it differs in the first digits."""


class Packer:
    """Packs batches for models that it finds to keep packed examples apart."""

    def __init__(self) -> None:
        self._checked: WeakSet[nn.Module] = WeakSet()

    def pack(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return what the model is called with and the labels, in one row each.

        Args:
            batch: input_ids, attention_mask and labels, (B, T) each.

        Returns:
            input_ids and position_ids, and labels, (1, tokens) each; the first label of an example is IGNORED, which
            the example before it would have to predict.

        Raises:
            RecipeError: the model's output for packed examples is another than for each alone.
        """
        if len(batch["input_ids"]) > 1 and model not in self._checked:
            _require_apart(model, batch)
            self._checked.add(model)
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORED
        return _in_one_row(batch), labels[batch["attention_mask"].bool()][None]


def _in_one_row(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = batch["attention_mask"].bool()
    positions = kept.cumsum(1) - 1
    return {"input_ids": batch["input_ids"][kept][None], "position_ids": positions[kept][None]}


@torch.no_grad()
def _require_apart(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    two = {key: batch[key][:2, :CHECKED_TOKENS] for key in ("input_ids", "attention_mask")}
    with evaluating(model):
        alone = widen(logits_of(model, two))
        try:
            packed = logits_of(model, _in_one_row(two))
        except TypeError:  # no position_ids
            packed = alone.new_zeros(0)
    torch.clear_autocast_cache()  # casts made here have no graph
    kept = two["attention_mask"].bool()
    expected = alone[:, -kept.shape[1] :][kept]  # behind what a strategy puts in front
    apart = packed.shape[1:2] == expected.shape[:1] and (
        (widen(packed[0]) - expected).square().mean().sqrt()
        <= TOLERANCE * torch.finfo(packed.dtype).eps * expected.square().mean().sqrt()
    )
    if not apart:
        raise RecipeError(
            f"task.packing is true, and {type(model).__name__} (as the strategy prepared it) computes other outputs "
            "for examples that are packed into one row than for each alone. Set task.packing to false."
        )
