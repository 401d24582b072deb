"""On-policy losses, one class each: advantages from rewards, and the weighting of tokens and answers.

The G answers to a prompt have rewards r with mean m and standard deviation s (with divisor G - 1). A is an answer's
advantage and L its number of tokens. A token's ratio is ρ = π/π_d: its probability now over that when it was drawn,
both at the sampling temperature. If each answer is used for one update only, ρ is 1 and only its gradient matters. The
loss of a step is a sum over its answers, divided once by their total weight.

    clip(ρ) = min(ρ·A, min(max(ρ, 1 - ε), 1 + ε′)·A)
    k3      = q/π - log(q/π) - 1, q being the reference's probability (Schulman 2020)

If β > 0, β·ρ·k3 is added to a token's loss; its gradient is that of the KL divergence (DeepSeek-AI 2025,
arXiv:2512.02556, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ftengine.api import Config
from ftengine.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

LEAST_STD = 1e-4
"""Added to the standard deviation of rewards, as in TRL."""
DECIMALS = 6
"""Decimals to which rewards are compared: sums of weighted rewards differ by rounding."""
Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class DrawnTokens:
    """The N trained tokens of n answers, in at least fp32.

    Args:
        now, drawn: (N,) log π and log π_d; equal if each answer is used for one update, but `drawn` has no gradient.
        answers: (N,) the index of each token's answer, from 0.
        advantages: (n,) A.
        longest: maximal number of tokens of an answer.
        reference: (N,) log q; None if the loss has no divergence term.
    """

    now: Tensor
    drawn: Tensor
    answers: Tensor
    advantages: Tensor
    longest: int
    reference: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """(N,) log ρ."""
        return self.now - self.drawn

    @property
    def advantage(self) -> Tensor:
        """(N,) A of each token's answer."""
        return self.advantages[self.answers]

    @property
    def counts(self) -> Tensor:
        """(n,) L, at least 1."""
        import torch

        return torch.bincount(self.answers, minlength=len(self.advantages)).clamp(min=1)

    @property
    def k3(self) -> Tensor:
        """(N,) k3 of each token; 0 without a reference."""
        import torch

        if self.reference is None:
            return torch.zeros_like(self.now)
        gap = self.reference - self.now
        return gap.exp() - gap - 1

    def sums(self, values: Tensor) -> Tensor:
        """Return (n,) sums of (N,) values over each answer's tokens."""
        return values.new_zeros(len(self.advantages)).index_add(0, self.answers, values)


class PolicyLoss(Config):
    """A loss of sampled answers. Its fields are its options, which the task's keys of the same names set."""

    name: ClassVar[str]
    """What recipes write as `task.loss`."""
    penalises_reward: ClassVar[bool] = False
    """Whether the divergence is taken from the reward, summed over an answer, and not added to the loss."""
    unread: ClassVar[frozenset[str]] = frozenset()
    """Names of options that it inherits and does not read; a recipe that sets one is refused."""

    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    scale_rewards: Scale = "group"

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return (groups, G) advantages of rewards; 0 for nan (a missing reward), and if all rewards are equal."""
        import torch

        known = ~rewards.isnan()
        rounded = rewards.round(decimals=DECIMALS)
        spread = rounded.nan_to_num(-torch.inf).amax(1) > rounded.nan_to_num(torch.inf).amin(1)
        gaps = rewards - rewards.nanmean(1, keepdim=True)
        if self.scale_rewards == "group":
            gaps = gaps / (_std(gaps, known, dim=1) + LEAST_STD)
        elif self.scale_rewards == "batch":
            mean = rewards.nanmean()
            gaps = gaps / (_std(rewards - mean, known, dim=None) + LEAST_STD)
        return torch.where(known & spread[:, None], gaps, 0.0)

    def token_losses(self, tokens: DrawnTokens) -> Tensor:
        """Return (N,) losses of tokens without the divergence term; by default -clip(ρ)."""
        return -self.clipped(tokens.log_ratio, tokens.advantage)

    def reduce(self, tokens: DrawnTokens, losses: Tensor) -> tuple[Tensor, float]:
        """Return (sum, weight) of the (N,) token losses; by default each answer's mean, and the number of answers."""
        return (tokens.sums(losses) / tokens.counts).sum(), float(len(tokens.advantages))

    def weight(self, tokens: int, longest: int) -> float:
        """Return the weight in `reduce` of an answer with this number of tokens."""
        return 1.0

    def __call__(self, tokens: DrawnTokens) -> tuple[Tensor, float]:
        """Return (sum of losses, its weight)."""
        losses = self.token_losses(tokens)
        if self.beta and not self.penalises_reward:
            losses = losses + self.beta * tokens.k3 * self.ratio(tokens)
        return self.reduce(tokens, losses)

    def ratio(self, tokens: DrawnTokens) -> Tensor:
        """Return the (N,) ratios of tokens; by default ρ."""
        return tokens.log_ratio.exp()

    def bounds(self) -> tuple[float, float]:
        """Return the bounds of ρ: 1 - ε and 1 + ε′."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return 1 - self.epsilon, 1 + high

    def clipped(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return clip(ρ)."""
        import torch

        ratio = log_ratio.exp()
        return torch.minimum(ratio * advantages, ratio.clamp(*self.bounds()) * advantages)

    def is_clipped(self, tokens: DrawnTokens) -> Tensor:
        """Return (N,) whether clipping stops a token's gradient."""
        low, high = self.bounds()
        ratio = self.ratio(tokens).detach()
        return ((ratio < low) & (tokens.advantage < 0)) | ((ratio > high) & (tokens.advantage > 0))


class GRPO(PolicyLoss):
    """-clip(ρ), A = (r - m)/(s + 10⁻⁴), ε 0.2; the mean over each answer's tokens, then over answers.

    (Shao et al. 2024, arXiv:2402.03300, eq. 3.) A token of a long answer counts less than one of a short answer.
    """

    name = "grpo"


class PerToken(PolicyLoss):
    """A loss in which all tokens of a step have the same weight."""

    def reduce(self, tokens: DrawnTokens, losses: Tensor) -> tuple[Tensor, float]:
        return losses.sum(), float(len(losses))

    def weight(self, tokens: int, longest: int) -> float:
        return float(tokens)


class DrGRPO(PolicyLoss):
    """-clip(ρ), A = r - m, ε 0.2; the sum divided by the number of answers times `max_new_tokens`.

    (Liu et al. 2025, arXiv:2503.20783, §3.1.)
    """

    name = "dr-grpo"
    scale_rewards: Scale = "none"

    def reduce(self, tokens: DrawnTokens, losses: Tensor) -> tuple[Tensor, float]:
        return losses.sum(), float(len(tokens.advantages) * tokens.longest)

    def weight(self, tokens: int, longest: int) -> float:
        return float(longest)


class DAPO(PerToken):
    """-clip(ρ), A as in grpo, ε 0.2 and ε′ 0.28, the mean over all tokens (Yu et al. 2025, arXiv:2503.14476)."""

    name = "dapo"
    epsilon_high: float | None = 0.28


class RLOO(PolicyLoss):
    """-clip(∏ρ) per answer, A = r minus the mean of the other answers' rewards, ε 0.2.

    (Ahmadian et al. 2024, arXiv:2402.14740, eq. 5.) If β > 0, r is the reward minus β times the summed log π_d/q.
    """

    name = "rloo"
    penalises_reward = True
    scale_rewards: Scale = "none"

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return (groups, G) rewards minus the mean of the others, G/(G - 1)·(r - m)."""
        known = (~rewards.isnan()).sum(1, keepdim=True)
        return super().advantages(rewards) * known / (known - 1).clamp(min=1)

    def ratio(self, tokens: DrawnTokens) -> Tensor:
        return tokens.sums(tokens.log_ratio).exp()[tokens.answers]

    def token_losses(self, tokens: DrawnTokens) -> Tensor:
        """Return (N,) the loss of each token's answer, divided by the number of its tokens."""
        return -self.clipped(tokens.sums(tokens.log_ratio), tokens.advantages)[tokens.answers]


class GSPO(PolicyLoss):
    """-clip((∏ρ)^(1/L)) per answer, A as in grpo, ε 3·10⁻⁴ and ε′ 4·10⁻⁴.

    (Zheng et al. 2025, arXiv:2507.18071, eq. 5.)
    """

    name = "gspo"
    epsilon: float = 3e-4
    epsilon_high: float | None = 4e-4

    def ratio(self, tokens: DrawnTokens) -> Tensor:
        return (tokens.sums(tokens.log_ratio) / tokens.counts).exp()[tokens.answers]

    def token_losses(self, tokens: DrawnTokens) -> Tensor:
        log_ratio = tokens.sums(tokens.log_ratio) / tokens.counts
        return -self.clipped(log_ratio, tokens.advantages)[tokens.answers]


class CISPO(PerToken):
    """-min(ρ, ε′)·A·log π without gradient through min, A as in grpo, ε′ 5, the mean over all tokens.

    (MiniMax 2025, arXiv:2506.13585, §3.1; ε′ as in Khatri et al. 2025, arXiv:2510.13786.) It clips ρ itself.
    """

    name = "cispo"
    unread = frozenset({"epsilon"})
    epsilon_high: float | None = Field(5.0, ge=1)

    def bounds(self) -> tuple[float, float]:
        return 0.0, 5.0 if self.epsilon_high is None else self.epsilon_high

    def token_losses(self, tokens: DrawnTokens) -> Tensor:
        ratio = tokens.log_ratio.exp().clamp(max=self.bounds()[1]).detach()
        return -ratio * tokens.advantage * tokens.now


def _std(gaps: Tensor, known: Tensor, dim: int | None) -> Tensor:
    """Return the standard deviation of gaps from their mean, over those that are known, with dimensions kept."""
    squares = gaps.where(known, gaps.new_zeros(())).square()
    total, count = (squares.sum(), known.sum()) if dim is None else (squares.sum(dim, True), known.sum(dim, True))
    return (total / (count - 1).clamp(min=1)).sqrt()


def require_rising(loss: PolicyLoss) -> None:
    """Raise PluginError if a step along a loss's gradient does not make the better answers likelier."""
    import torch

    advantages = loss.advantages(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    now = torch.full((4,), -2.0, dtype=torch.float64, requires_grad=True)
    answers = torch.tensor([0, 0, 1, 1])
    reference = now.detach() if loss.beta else None
    with torch.enable_grad():
        total, _ = loss(DrawnTokens(now, now.detach(), answers, advantages[0], 2, reference))
        (slope,) = torch.autograd.grad(total, now, allow_unused=True) if total.requires_grad else (None,)
    where = f"loss {loss.name!r} ({type(loss).__module__}.{type(loss).__qualname__})"
    if slope is None:
        raise PluginError(f"{where} has no gradient: do not detach `now`.")
    if not (bool((slope[2:] < 0).all()) and bool((slope[:2] >= 0).all())):
        raise PluginError(
            f"{where}: of two answers with rewards 0 and 1 its slopes by log-probability are "
            f"{', '.join(f'{x:.3g}' for x in slope.tolist())}; it must fall as the better answer gets likelier. Look "
            "at the signs of advantages and losses."
        )


LOSSES: tuple[type[PolicyLoss], ...] = (GRPO, DrGRPO, DAPO, RLOO, GSPO, CISPO)
"""The built-in losses; the first is the default."""
