"""Criteria: losses from logits and targets. Regularizers choose one, tasks apply it where logits meet labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Criterion:
    """The plain losses: cross entropy, binary cross entropy, squared error.

    A criterion that compares several forward passes sets `passes`, and is called with the outputs of each. It is called
    with a chunk of positions at a time, so a loss must not depend on how positions are grouped.
    """

    passes: int = 1
    """Forward passes that it needs of a batch; a task runs the model so often."""

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        """Return (n,) losses of one label each, of (n, K) logits of each pass, in at least fp32.

        Targets are (n,) int64 ids, or (n, K) probabilities of mixed examples.
        """
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits[0], targets, reduction="none")

    def multi(self, targets: Tensor, *logits: Tensor) -> Tensor:
        """Return (n,) losses of several labels each: the mean of K binary cross entropies; targets (n, K) in 0…1."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(logits[0], targets, reduction="none").mean(dim=1)

    def regression(self, targets: Tensor, *outputs: Tensor) -> Tensor:
        """Return (n,) squared errors, the mean over outputs; targets and outputs (n, outputs)."""
        return ((outputs[0] - targets) ** 2).mean(dim=1)
