"""The loss of each of several sources, of the losses of labels that are computed anyway."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ftengine.api.task_sorts import compares_examples
from ftengine.data.encoding import EncodedSplit
from ftengine.equivalence import SUMMED
from ftengine.model import Criterion


class NotedCriterion(Criterion):
    """A criterion that notes the loss of each label that it is asked for."""

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


class SourceLosses:
    """Sums of losses by source.

    A task gives its criterion the labels of a batch in the order of its examples, of each as many as its weight. Where
    their number is another (augmenters made other rows, or the loss is none of the criterion), nothing is told.
    """

    def __init__(self, split: EncodedSplit) -> None:
        self._split, self._of = split, split.sources
        told = bool(split.source_names) and not split.augmenters and not compares_examples(split.task)
        self.names = split.source_names if told else []

    def noting(self, criterion: Criterion) -> Criterion:
        """Return a criterion for one batch, as it is or noting what it is asked for."""
        return NotedCriterion(criterion) if self.names else criterion

    def sums(self, members: np.ndarray, criterion: Criterion) -> list[Tensor]:
        """Return a source's summed loss each, of a batch of these examples; nan where they are not known."""
        if not isinstance(criterion, NotedCriterion):
            return []
        counts = self._split.weights[members].astype(int)
        losses = torch.cat([one.flatten() for one in criterion.losses]) if criterion.losses else torch.zeros(0)
        if len(losses) != counts.sum():
            return [losses.new_tensor(math.nan)] * len(self.names)
        of = torch.as_tensor(np.repeat(self._of[members], counts), device=losses.device)
        return list(losses.new_zeros(len(self.names), dtype=torch.float32).index_add(0, of, losses.float()))

    def means(self, members: np.ndarray, sums: list[float], total: float, prefix: str) -> dict[str, float]:
        """Return the mean loss of each source that some of these examples are of, by its name behind a prefix.

        Args:
            sums: over all processes, as `sums` has them.
            total: summed loss of all; where the sources' do not come to it, nothing is returned.
        """
        if not sums or not abs(sum(sums) - total) <= SUMMED * abs(total):
            return {}
        weights = np.bincount(self._of[members], self._split.weights[members], len(self.names))
        told = zip(self.names, sums, weights.tolist(), strict=True)
        return {f"{prefix}{name}": loss / weight for name, loss, weight in told if weight}
