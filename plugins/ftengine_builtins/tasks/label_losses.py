"""Losses and divergences of labelled examples, one number an example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_losses(kind: str, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return (examples,) cross entropy, mean binary cross entropy over labels, or mean squared error.

    Args:
        kind: "single", "multi" or "regression".
        logits: (examples, labels).
        labels: int64 (examples,) ids, or fp32 (examples, labels): probabilities of a mixed example where kind is
            single, 0 and 1 (or between) for several labels, numbers for regression.
        smoothing: ε of label smoothing: a target y becomes (1 - ε) y + ε / K over K classes (Szegedy et al. 2016,
            arXiv:1512.00567, §7); each of several labels is a choice between two. A number has no such thing.
    """
    if kind == "single":
        targets = labels.to(logits.dtype) if labels.is_floating_point() else labels
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    labels = labels.to(logits.dtype)
    if kind == "multi":
        labels = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    return F.mse_loss(logits, labels, reduction="none").mean(dim=1)


def label_divergences(kind: str, first: Tensor, second: Tensor) -> Tensor:
    """Return (examples,) halves of KL(p‖q) + KL(q‖p) between what two logits say.

    Args:
        kind: "single" or "multi"; with several labels, the mean over their choices between two.
        first, second: (examples, labels) logits.
    """
    if kind == "single":
        return divergence(first, second)
    return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(dim=1)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return (N,) halves of KL(p‖q) + KL(q‖p) = Σ (p - q)(log p - log q) for the (N, K) logits of p and q."""
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return 0.5 * ((torch.exp(log_p) - torch.exp(log_q)) * (log_p - log_q)).sum(dim=-1)
