"""Divergences of a student's distributions from a teacher's, over chunks of tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftengine.model import Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from ftengine.model import Labelled


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return (n,) KL(p‖q) in nats, of log-probabilities (n, V)."""
    return (p.exp() * (p - q)).sum(-1)


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return (n,) the generalised Jensen–Shannon divergence in nats (Agarwal et al. 2023, arXiv:2306.13649, eq. 1).

    β·KL(p‖M) + (1 − β)·KL(π‖M), M = β·p + (1 − β)·π, for the teacher's p and the student's π. β 0 is KL(p‖π) and β 1
    is KL(π‖p), as the paper and TRL take them, although the formula tends to 0 there.

    Args:
        student, teacher: (n, V) log-probabilities.
        beta: from 0 to 1.
    """
    import torch

    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


class TaughtBy(Criterion):
    """The divergence from a teacher, for chunks of tokens in their order.

    Neither model's logits exist for more than a chunk. Keeps, by token in that order, KL(π‖p), the student's entropy
    and the log-probability that it gives the label, each (N,) and without gradient.

    Args:
        teacher: its states at the same tokens.
        beta: of `generalised_jsd`.
        temperature: by which logits of both are divided.
    """

    def __init__(self, teacher: Labelled, beta: float, temperature: float) -> None:
        self._teacher, self._beta, self._temperature, self._at = teacher, beta, temperature, 0
        self.kl: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.logps: list[Tensor] = []

    def single(self, targets: Tensor, *logits: Tensor) -> Tensor:
        import torch

        part = slice(self._at, self._at + len(targets))
        self._at += len(targets)
        with torch.no_grad():
            theirs = self._teacher.logits(self._teacher.states[part])
        size = min(theirs.shape[-1], logits[0].shape[-1])
        student, teacher = ((x[:, :size] / self._temperature).log_softmax(-1) for x in (logits[0], theirs))
        losses = generalised_jsd(student, teacher.to(student.dtype), self._beta)
        with torch.no_grad():
            now = student.detach()
            self.kl.append(losses.detach() if self._beta == 1 else kl(now, teacher))
            self.entropies.append(-(now.exp() * now).sum(-1))
            self.logps.append(now.gather(-1, targets.clamp(max=size - 1)[:, None])[:, 0])
        return losses
