"""Losses of preference pairs, one class each: a formula over log-probabilities of the two answers to a prompt.

c and r are the summed log-probabilities of the chosen and the rejected answer, c̄ and r̄ those per token of the answer,
c_ref and r_ref what the reference gives them, and

    Δ = (c - c_ref) - (r - r_ref),    Δ̄ = (c̄ - c̄_ref) - (r̄ - r̄_ref)

All logarithms are natural. A pair's loss is `loss(margin(pair))`, plus `nll` times the negative log-likelihood per
token of the chosen answer, -c̄; the loss of a step is the mean over its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ftengine.api import Config
from ftengine.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities of n pairs of answers, (n,) each, in at least fp32.

    Args:
        chosen, rejected: c and r.
        chosen_tokens, rejected_tokens: how many tokens each answer has.
        reference_chosen, reference_rejected: c_ref and r_ref; None if the loss has no reference.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None

    @property
    def gap(self) -> Tensor:
        """(n,) Δ: how much more the chosen answer gained on the reference than the rejected one."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)

    @property
    def mean_gap(self) -> Tensor:
        """Δ̄."""
        chosen = (self.chosen - self.reference_chosen) / self.chosen_tokens
        return chosen - (self.rejected - self.reference_rejected) / self.rejected_tokens

    @property
    def divergence(self) -> Tensor:
        """The mean over both answers of |c̄ - c̄_ref| and |r̄ - r̄_ref|."""
        chosen = (self.chosen - self.reference_chosen).abs() / self.chosen_tokens
        return (chosen + (self.rejected - self.reference_rejected).abs() / self.rejected_tokens) / 2

    @property
    def mean_chosen(self) -> Tensor:
        """c̄."""
        return self.chosen / self.chosen_tokens

    @property
    def mean_rejected(self) -> Tensor:
        """r̄."""
        return self.rejected / self.rejected_tokens


class PreferenceLoss(Config):
    """A loss of preference pairs. Its fields are options: the task sets them by keys of the same names."""

    name: ClassVar[str]
    """What recipes write as `task.loss`."""
    reference: ClassVar[bool] = True
    """Whether it compares with the model before training."""

    beta: float = 0.1
    nll: float = 0.0

    def margin(self, pairs: Pairs) -> Tensor:
        """Return (n,) by how much each chosen answer is preferred: positive if it is. By default β·Δ."""
        return self.beta * pairs.gap

    def loss(self, margin: Tensor) -> Tensor:
        """Return (n,) losses of margins m. By default -log σ(m)."""
        from torch.nn.functional import logsigmoid

        return -logsigmoid(margin)

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return (n,) losses, with the chosen answers' NLL where it counts."""
        losses = self.loss(self.margin(pairs))
        return losses - self.nll * pairs.mean_chosen if self.nll else losses


class DPO(PreferenceLoss):
    """-log σ(β·Δ), β 0.1 (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)."""

    name = "dpo"


class ConservativeDPO(PreferenceLoss):
    """-(1 - ε)·log σ(β·Δ) - ε·log σ(-β·Δ), β 0.1, ε 0.1: a share ε of the pairs is assumed exchanged.

    (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".) It is least at a margin of log((1 -
    ε)/ε), 2.2: beyond that a pair is pulled back.
    """

    name = "cdpo"
    label_smoothing: float = 0.1

    def loss(self, margin: Tensor) -> Tensor:
        right, wrong = super().loss(margin), super().loss(-margin)
        return (1 - self.label_smoothing) * right + self.label_smoothing * wrong


class RobustDPO(PreferenceLoss):
    """[-(1 - ε)·log σ(β·Δ) + ε·log σ(-β·Δ)] / (1 - 2ε), β 0.1, ε 0.1: on average DPO's loss without noise.

    (Chowdhury et al. 2024, arXiv:2403.00409, §3.) A share ε of the pairs is assumed exchanged; unlike cdpo it has no
    minimum, and can be negative.
    """

    name = "robust"
    label_smoothing: float = 0.1

    def loss(self, margin: Tensor) -> Tensor:
        right, wrong = super().loss(margin), super().loss(-margin)
        return ((1 - self.label_smoothing) * right - self.label_smoothing * wrong) / (1 - 2 * self.label_smoothing)


class IPO(PreferenceLoss):
    """(Δ̄ - 1/(2β))², β 0.1, the paper's τ (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    Of log-probabilities per token, as the authors have confirmed for answers of different lengths; the margin is Δ̄.
    """

    name = "ipo"

    def margin(self, pairs: Pairs) -> Tensor:
        return pairs.mean_gap

    def loss(self, margin: Tensor) -> Tensor:
        return (margin - 1 / (2 * self.beta)).square()


class LengthNormalisedDPO(PreferenceLoss):
    """-log σ(β·Δ̄), β 5: DPO per token, so that length does not count (Lambert et al. 2024, Tülu 3, arXiv:2411.15124).

    Numbers per token are smaller than sums, so β is larger.
    """

    name = "sigmoid-norm"
    beta: float = 5.0

    def margin(self, pairs: Pairs) -> Tensor:
        return self.beta * pairs.mean_gap


class SimPO(PreferenceLoss):
    """-log σ(β·(c̄ - r̄) - γ), β 2, γ 0.5, without reference (Meng et al. 2024, arXiv:2405.14734, eq. 6).

    γ is `target_margin`. The paper uses β from 2 to 2.5 and γ from 0.3 to 1.6.
    """

    name = "simpo"
    reference = False
    beta: float = 2.0
    target_margin: float = 0.5

    def margin(self, pairs: Pairs) -> Tensor:
        return self.beta * (pairs.mean_chosen - pairs.mean_rejected)

    def loss(self, margin: Tensor) -> Tensor:
        return super().loss(margin - self.target_margin)


class ORPO(PreferenceLoss):
    """-c̄ - β·log σ(log odds(c̄) - log odds(r̄)), odds(x) = eˣ / (1 - eˣ), β 0.1, without reference.

    (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7, whose λ is β.) Supervised tuning on the chosen answer, `nll` 1,
    and a penalty on the rejected one: for a base without supervised tuning.
    """

    name = "orpo"
    reference = False
    nll: float = 1.0

    def margin(self, pairs: Pairs) -> Tensor:
        return _log_odds(pairs.mean_chosen) - _log_odds(pairs.mean_rejected)

    def loss(self, margin: Tensor) -> Tensor:
        return self.beta * super().loss(margin)


class CPO(PreferenceLoss):
    """-log σ(β·(c - r)) - c̄, β 0.1, without reference (Xu et al. 2024, arXiv:2401.08417, §3); `nll` is 1."""

    name = "cpo"
    reference = False
    nll: float = 1.0

    def margin(self, pairs: Pairs) -> Tensor:
        return self.beta * (pairs.chosen - pairs.rejected)


def require_falling(loss: PreferenceLoss) -> None:
    """Raise PluginError if a loss does not fall as chosen answers become likelier and rejected ones less likely.

    It is tested on pairs of equal answers, with margins from 2 nats on the wrong side to 0.
    """
    import torch

    gaps = torch.linspace(-2, 0, 5, dtype=torch.float64)
    same = torch.full_like(gaps, -20)
    chosen, rejected = ((same + half).requires_grad_() for half in (gaps / 2, -gaps / 2))
    tokens = torch.full_like(gaps, 10)
    pairs = Pairs(chosen, rejected, tokens, tokens, *((same, same) if loss.reference else ()))
    with torch.enable_grad():
        margins, losses, by_margin = loss.margin(pairs).detach(), loss(pairs), loss.loss(gaps)
        total = losses.sum()
    if any(values.shape != gaps.shape for values in (margins, losses, by_margin)):
        return  # which `require_each` tells of
    if not margins[-1] > margins[0]:
        raise _not_sound(loss, "its margin", margins, "margin() must rise as the chosen answer gets likelier")
    for name, values in (("its loss() of a margin", by_margin), ("it", losses)):
        if not values[-1] < values[0]:
            raise _not_sound(loss, name, values.detach(), "a loss must fall as the margin grows")
    gradients = torch.autograd.grad(total, (chosen, rejected), allow_unused=True) if losses.requires_grad else ()
    if not any(slope is not None and slope.any() for slope in gradients):
        where = f"{type(loss).__module__}.{type(loss).__qualname__}"
        raise PluginError(f"loss {loss.name!r} ({where}) has no gradient: do not detach the compared values.")


def _not_sound(loss: PreferenceLoss, quantity: str, values: Tensor, requirement: str) -> PluginError:
    where = f"{type(loss).__module__}.{type(loss).__qualname__}"
    return PluginError(
        f"loss {loss.name!r} ({where}): {quantity} goes from {float(values[0]):.4g} to {float(values[-1]):.4g} as the "
        f"log-probability of the chosen answer, less that of the rejected one, rises from -2 to 0; {requirement}. Look "
        "at the sign."
    )


def _log_odds(x: Tensor) -> Tensor:
    """Return log(eˣ / (1 - eˣ)) of log-probabilities; those that round to 0 use the next smaller number."""
    import torch

    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return x - (-torch.expm1(x)).log()


LOSSES: tuple[type[PreferenceLoss], ...] = (
    *(DPO, RobustDPO, ConservativeDPO, IPO, LengthNormalisedDPO),
    *(SimPO, ORPO, CPO),
)
"""The built-in losses; the first is the default."""
