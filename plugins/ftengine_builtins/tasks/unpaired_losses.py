"""Losses of answers that are desirable or not, one class each: a formula over log-probabilities.

With the log-probability log p of an answer y to its prompt x, that of the reference, log p_ref, and β, an answer's
implied reward is

    r(x, y) = β·(log p(y|x) - log p_ref(y|x))

The loss compares all answers of an effective batch, across processes: they are one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ftengine.api import Config
from ftengine.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """Results of n answers of one group, (n,) each, in at least fp32.

    Args:
        logp: log-probability of each answer, summed over its tokens.
        tokens: number of tokens of each.
        desirable: bool, whether each is desirable.
        mismatched_logp: log-probability of another prompt's answer, given each answer's prompt; without gradient.
        reference_logp, reference_mismatched_logp: the same by the reference.
    """

    logp: Tensor
    tokens: Tensor
    desirable: Tensor
    mismatched_logp: Tensor
    reference_logp: Tensor
    reference_mismatched_logp: Tensor


class UnpairedLoss(Config):
    """A loss of single answers. Its fields are options: the task sets them by keys of the same names."""

    name: ClassVar[str]
    """What recipes write as `task.loss`."""
    reference: ClassVar[bool] = True
    """Whether it compares with the model before training."""

    beta: float = 0.1
    nll: float = 0.0

    def reward(self, logp: Tensor, reference: Tensor) -> Tensor:
        """Return (n,) implied rewards r."""
        return self.beta * (logp - reference)

    def loss(self, answers: Answers) -> Tensor:
        """Return (n,) losses of the answers of a group."""
        raise NotImplementedError

    def __call__(self, answers: Answers) -> Tensor:
        """Return (n,) losses, including the desirable answers' NLL per token if it has a weight."""
        losses = self.loss(answers)
        return losses - self.nll * answers.logp / answers.tokens * answers.desirable if self.nll else losses


class KTO(UnpairedLoss):
    """λ_D·(1 - σ(r - z₀)) of desirable answers, λ_U·(1 - σ(z₀ - r)) of others; β 0.1, λ_D 1, λ_U 1.

    z₀ = max(0, mean of r(x, y') over the group) without gradient, where y' is the answer to another prompt: an estimate
    of β·KL(p ‖ p_ref). (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.) λ_D is `desirable_weight` and λ_U
    `undesirable_weight`; of n_D desirable answers and n_U others, eq. 8 has λ_D·n_D from 1 to 4/3 times λ_U·n_U.
    """

    name = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def loss(self, answers: Answers) -> Tensor:
        import torch

        rewards = self.reward(answers.logp, answers.reference_logp)
        zero = self.reward(answers.mismatched_logp, answers.reference_mismatched_logp).mean().detach().clamp(min=0)
        desirable = self.desirable_weight * (1 - torch.sigmoid(rewards - zero))
        return torch.where(answers.desirable, desirable, self.undesirable_weight * (1 - torch.sigmoid(zero - rewards)))


def require_falling(loss: UnpairedLoss) -> None:
    """Refuse a loss that does not fall as desirable answers get likelier and others less likely (PluginError).

    It is tested on answers whose log-probability equals the reference's.
    """
    import torch

    logp = torch.full((4,), -20.0, dtype=torch.float64, requires_grad=True)
    same, desirable = logp.detach(), torch.tensor([True, False, True, False])
    with torch.enable_grad():
        losses = loss(Answers(logp, torch.full_like(same, 10), desirable, same, same, same))
        total = losses.sum()
    if losses.shape != logp.shape:
        return  # which `require_each` tells of
    gradient = torch.autograd.grad(total, logp, allow_unused=True)[0] if losses.requires_grad else None
    slopes = torch.zeros_like(same) if gradient is None else gradient
    if not slopes.any() or bool((torch.where(desirable, slopes, -slopes) > 0).any()):
        raise PluginError(
            f"loss {loss.name!r} ({type(loss).__module__}.{type(loss).__qualname__}): its derivative is "
            f"{float(slopes[0]):.4g} for a desirable answer's log-probability (must be below 0) and "
            f"{float(slopes[1]):.4g} for another answer's (must be above 0). Check the sign, and detach no input."
        )


UNPAIRED_LOSSES: tuple[type[UnpairedLoss], ...] = (KTO,)
"""The built-in losses; the first is the default."""
