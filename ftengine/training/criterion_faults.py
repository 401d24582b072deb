"""Checks, on invented logits, that a criterion falls when labels become likelier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ftengine.api import Labels, Task
from ftengine.equivalence import REORDERED, distance
from ftengine.model import Criterion
from ftengine.model.modes import generators_kept

ROWS = 32
PROBABILITIES = (0.02, 0.1, 0.3, 0.6)
"""Probabilities of the label for which the loss is computed. The loss at the last must be lower than at some other, as
it is for smoothed labels and for losses that ignore rows which look mislabelled."""

MANY = 1 << 14
"""Number of classes from which fewer rows are used, to save time."""

OTHERWISE = 7
"""Number of classes if a model does not state it."""


def outputs_of(task: Task, module: torch.nn.Module) -> int:
    """Return the number of outputs of the logits that a task gives to a criterion."""
    if task.labels is not None:
        return len(task.labels.names)
    head = getattr(module, "get_output_embeddings", lambda: None)()
    return int(getattr(head, "out_features", OTHERWISE))


def criterion_fault(criterion: Criterion, labels: Labels | None, outputs: int, device: torch.device) -> str:
    """Return why a criterion does not make a model learn its labels; "" if it does.

    Args:
        labels: the task's labels; None if it predicts tokens.
        outputs: from `outputs_of`.

    Raises:
        Any error of the criterion.
    """
    kind = "single" if labels is None else labels.kind
    if kind in ("multi", "regression"):
        return _fault(criterion, kind, _choices if kind == "multi" else _numbers, outputs, device)
    return next(
        (fault for ask in (_ids, _mixed) if (fault := _fault(criterion, "single", ask, outputs, device))),
        "",
    )


def split_fault(criterion: Criterion, labels: Labels | None, outputs: int, device: torch.device) -> str:
    """Return a fault if a row's loss depends on other rows; "" if it does not, or if the criterion is random."""
    kind = "single" if labels is None or labels.kind == "tags" else labels.kind
    make = {"single": _ids, "multi": _choices, "regression": _numbers}[kind]
    targets, alike = make(0.3, outputs, device)
    logits = alike + torch.randn(alike.shape, generator=torch.Generator().manual_seed(1)).to(device)
    method = getattr(criterion, kind)

    def losses(rows: slice, seed: int = 0) -> Tensor:
        with generators_kept(), torch.no_grad():
            torch.manual_seed(seed)
            return method(targets[rows], *(logits[rows] for _ in range(criterion.passes)))

    together, again = losses(slice(None)), losses(slice(None), seed=1)
    parts = torch.cat([losses(slice(0, 5)), losses(slice(5, None))])
    if parts.shape != (len(targets),):
        return f"{kind}() returns a tensor of shape {tuple(parts.shape)} for {len(targets)} rows; return one a row"
    if torch.equal(together, again) and not distance(parts, together) <= REORDERED:
        return f"{kind}() gives rows other losses in chunks than together, but it is called with one chunk at a time"
    return ""


def _fault(
    criterion: Criterion,
    method: str,
    make: Callable[[float, int, torch.device], tuple[Tensor, Tensor]],
    outputs: int,
    device: torch.device,
) -> str:
    means, slope = list[float](), False
    for probability in PROBABILITIES:
        targets, logits = make(probability, outputs, device)
        with generators_kept(), torch.enable_grad():
            torch.manual_seed(0)
            passes = [logits.clone().requires_grad_() for _ in range(criterion.passes)]
            losses = getattr(criterion, method)(targets, *passes)
            gradients = torch.autograd.grad(losses.sum(), passes, allow_unused=True) if losses.requires_grad else ()
        means.append(float(losses.detach().mean()))
        slope = slope or any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    subject = f"its {method}() of {'probabilities as targets' if make is _mixed else 'such targets'}"
    if not slope:
        return f"{subject} has no gradient in the logits"
    if means[-1] >= max(means[:-1]):
        series = ", ".join(f"{mean:.4g}" for mean in means)
        probabilities = ", ".join(map(str, PROBABILITIES))
        return f"{subject} is {series} for labels with a probability of {probabilities}, but it must fall"
    return ""


def _ids(probability: float, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return targets and logits that give each target a probability; with a single class it cannot vary."""
    generator = torch.Generator().manual_seed(0)
    outputs = max(outputs, 2)
    rows = ROWS if outputs < MANY else ROWS // 4
    targets = torch.randint(outputs, (rows,), generator=generator)
    logits = torch.randn(rows, outputs, generator=generator)
    others = logits.scatter(1, targets[:, None], float("-inf")).logsumexp(dim=1)
    odds = torch.logit(torch.tensor(probability))
    logits.scatter_(1, targets[:, None], (others + odds)[:, None])
    return targets.to(device), logits.to(device)


def _mixed(probability: float, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the same with probabilities as targets, as an augmenter mixes them."""
    targets, logits = _ids(probability, outputs, device)
    return torch.nn.functional.one_hot(targets, logits.shape[1]).to(logits), logits


def _choices(probability: float, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (ROWS, outputs), generator=generator).float()
    logits = (2 * targets - 1) * torch.logit(torch.tensor(probability)) + torch.randn(
        ROWS, outputs, generator=generator
    ) / 4
    return targets.to(device), logits.to(device)


def _numbers(probability: float, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return numeric targets, and outputs that are nearer to them for a larger "probability"."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(ROWS, outputs, generator=generator)
    sides = torch.randn(ROWS, outputs, generator=generator).sign()
    return targets.to(device), (targets + 2 * (1 - probability) * sides).to(device)
