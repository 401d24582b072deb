"""What tasks that predict probabilities have, and how far two of them lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ftengine.api import PredictsDistributions, Task
from ftengine.errors import RecipeError


def require_distributions(task: Task, regularizer: str) -> None:
    """Refuse a task that predicts no probabilities.

    Raises:
        RecipeError: names regularizer, task and the kind of its labels.
    """
    if not (isinstance(task, PredictsDistributions) and task.distributions):
        kind = f" with kind: {task.labels.kind}" if task.labels else ""
        raise RecipeError(
            f"regularizer {regularizer} works on the probabilities of classes, and task {task.name!r}{kind} predicts "
            "none. Take it out of the recipe."
        )


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return (n,) halves of KL(p‖q) + KL(q‖p) = Σ (p - q)(log p - log q) for the (n, K) logits of p and q."""
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return 0.5 * ((torch.exp(log_p) - torch.exp(log_q)) * (log_p - log_q)).sum(dim=-1)


def binary_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return (n,) means over (n, K) choices between two of the same, from their logits."""
    return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(dim=1)
