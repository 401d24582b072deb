"""The loss of each source, summed from the losses of labels that training computes anyway."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ftengine.api.on_policy import is_on_policy
from ftengine.api.task_sorts import compares_examples
from ftengine.data.encoding import EncodedSplit
from ftengine.equivalence import SUMMED
from ftengine.model import Criterion


class NotedCriterion(Criterion):
    """A criterion that records the loss of each label that it computes."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion, self.passes = criterion, criterion.passes
        self.losses: list[Tensor] = []

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return self._noted(self._criterion.single(targets, *logits))

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        return self._noted(self._criterion.multi(targets, *logits))

    def regression(self, targets: Tensor, *outputs: Tensor) -> Tensor:
        return self._noted(self._criterion.regression(targets, *outputs))

    def _noted(self, losses: Tensor) -> Tensor:
        self.losses.append(losses.detach())
        return losses


def losses_of_examples(criterion: NotedCriterion, weights: np.ndarray) -> Tensor:
    """Return the summed loss (n,) of each example of a batch, whose weights are (n,); nan if they are not known."""
    losses = torch.cat([part.flatten() for part in criterion.losses]) if criterion.losses else torch.zeros(0)
    counts = weights.astype(int)
    if len(losses) != counts.sum():
        return losses.new_full((len(counts),), math.nan, dtype=torch.float32)
    of = torch.as_tensor(np.repeat(np.arange(len(counts)), counts), device=losses.device)
    return losses.new_zeros(len(counts), dtype=torch.float32).index_add(0, of, losses.float())


class SourceLosses:
    """Sums of losses by source.

    A task gives its criterion the labels of a batch in the order of its examples, as many of each as its weight. If the
    number differs (augmenters made other rows, or the loss does not use the criterion), no losses are reported.
    """

    def __init__(self, split: EncodedSplit) -> None:
        self._split, self._of = split, split.sources
        separable = (
            bool(split.source_names)
            and not split.augmenters
            and not compares_examples(split.task)
            and not is_on_policy(split.task)
        )
        self.names = split.source_names if separable else []

    def noting(self, criterion: Criterion) -> Criterion:
        """Return the criterion for one batch; with several sources, one that records losses."""
        return NotedCriterion(criterion) if self.names else criterion

    def sums(self, members: np.ndarray, criterion: Criterion) -> list[Tensor]:
        """Return for each source its summed loss in a batch of these examples; nan if it is not known."""
        if not isinstance(criterion, NotedCriterion) or not self.names:
            return []
        losses = losses_of_examples(criterion, self._split.weights[members])
        of = torch.as_tensor(self._of[members], device=losses.device)
        return list(losses.new_zeros(len(self.names)).index_add(0, of, losses))

    def means(self, members: np.ndarray, sums: list[float], total: float, prefix: str) -> dict[str, float]:
        """Return the mean loss of each source in these examples; keys are prefix + name.

        Args:
            sums: sums of losses as in `sums`, over all processes.
            total: summed loss of all; if the sources' sums do not add up to it, nothing is returned.
        """
        if not sums or not abs(sum(sums) - total) <= SUMMED * abs(total):
            return {}
        weights = np.bincount(self._of[members], self._split.weights[members], len(self.names))
        sources = zip(self.names, sums, weights.tolist(), strict=True)
        return {f"{prefix}{name}": loss / weight for name, loss, weight in sources if weight}
