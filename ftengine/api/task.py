"""Tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import Component
from ftengine.api.criterion import Criterion
from ftengine.api.types import Batch, Example, Features, Labels, Prediction, View

if TYPE_CHECKING:
    import torch
    from torch import nn


class Task(Component):
    """Says what an example looks like, how it is encoded, and what the loss is."""

    head: ClassVar[str]
    """What the loader puts on top of the model."""
    modality: ClassVar[str]
    """What the inputs in a `View` are: "text" or "image"."""
    evaluators: tuple[str, ...] = ()
    """Evaluators that every run of this task uses; may depend on `labels`."""
    predicts: frozenset[str] = frozenset()
    """Keys that every `Prediction` of this task has, which evaluators read; may depend on `labels`."""
    labels: Labels | None = None
    """What `bind` returned, in this run or in the one that is reopened; set by the engine, read by the task."""

    def bind(self, splits: Mapping[str, Iterable[Example]]) -> Labels | None:
        """Return the classification targets, learnt from the training split; None where the task has none.

        `splits` holds "train" and, where present, "validation" and "test". Raise DataError where there are too few
        labels, or one occurs only outside of training.
        """
        return None

    def view(self, row: Example) -> View:
        """Return what the engine needs to know of a row, before and after the data is bound.

        Never raises: where a row cannot be read, what can be told of it is told. Only taking an input out (decoding an
        image) may raise DataError.
        """
        raise NotImplementedError

    def with_inputs(self, row: Example, inputs: Sequence[Any]) -> Example:
        """Return a row with other inputs, as many as `view` gives of it; the rest stays, and so does `row`.

        Raise DataError where the row cannot be read.
        """
        raise NotImplementedError

    def encode(self, example: Example, processor: Any, *, max_length: int | None = None) -> Features:
        """Encode one example; `max_length` is the model's limit in tokens.

        The result has at least "length" (tokens), "weight" (what this example adds to the loss's denominator, e.g.
        label tokens; 0 means that nothing of it is trained on) and "truncated" (bool). Where the model reads several
        sequences of an example, "longest" is the longest of them, for the model's limit. "full_length" is the same
        before cutting, of which `plan` shows the distribution; "unknown" is the number of tokens that stand for text
        which the tokenizer has no token for; "untrained" says why nothing of a row is trained on, where no cutting is
        to blame. Raise DataError where the row lacks a field or holds a value of the wrong kind.
        """
        raise NotImplementedError

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pad and stack features into tensors."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight); the engine divides once, by the whole effective batch's weight.

        The criterion is given the logits and targets of whatever is predicted, of `criterion.passes` forward passes.
        """
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Return one prediction an example, in the batch's order; called without gradients."""
        raise NotImplementedError
