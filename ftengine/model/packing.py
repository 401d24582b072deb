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

ROUNDINGS, FLOOR = 4, 1e-4
"""A packed example may differ from the same in a batch by so many times what it does when it is computed alone, and by
at least so much in any case (8 epsilons of a dtype that has fewer digits)."""


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
    kept = two["attention_mask"].bool()
    second, count = kept[1], int(kept[1].sum())
    with evaluating(model):
        outputs = logits_of(model, two)
        expected = widen(outputs)[1, -len(second) :][second]  # behind what a strategy puts in front
        alone = widen(logits_of(model, {key: values[1:, second] for key, values in two.items()}))[0, -count:]
        try:
            packed = widen(logits_of(model, _in_one_row(two)))
        except TypeError:  # no position_ids
            packed = expected.new_zeros(1, 0)
    torch.clear_autocast_cache()  # casts made here have no graph
    limit = max(FLOOR, 8 * torch.finfo(outputs.dtype).eps, ROUNDINGS * _apart(alone, expected))
    if packed.shape[1] != kept.sum() or _apart(packed[0, -count:], expected) > limit:
        raise RecipeError(
            f"task.packing is true, and {type(model).__name__} (as the strategy prepared it) computes other outputs "
            "for examples that are packed into one row than for each alone. Set task.packing to false."
        )


def _apart(own: Tensor, expected: Tensor) -> float:
    """Return the root mean square by which a token's logits differ, relative to their own, of the worst token."""
    return float(((own - expected).square().mean(-1) / expected.square().mean(-1)).max().sqrt())
