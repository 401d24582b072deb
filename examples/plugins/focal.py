"""A regularizer that trains on another loss.

A criterion gives each row (of texts each token) its own loss, whatever rows come with it: it is called with a chunk at
a time, with (n, K) logits of each pass and, as targets, (n,) ids or (n, K) probabilities, and returns (n,) losses. It
has to fall where the label gets likelier, which a run tries on a few made-up logits.
"""

import torch

from ftengine.api import Regularizer
from ftengine.model import Criterion


class Focal(Regularizer):
    """Count less what is already right: (1 - p)² times the loss (Lin et al. 2017, arXiv:1708.02002)."""

    name = "focal"

    def criterion(self, plain):
        return FocalLoss(plain)


class FocalLoss(Criterion):
    """Another criterion, weighted."""

    def __init__(self, plain):
        self.plain, self.passes = plain, plain.passes

    def single(self, targets, *logits):
        loss = self.plain.single(targets, *logits)
        return (1 - torch.exp(-loss)).square() * loss
