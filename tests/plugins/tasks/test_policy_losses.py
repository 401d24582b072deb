"""Losses of drawn answers against tables worked out by hand; TRL's are in tests/peers/test_trl_grpo.py."""

import math

import pytest
import torch
from expected import raises

from ftengine.errors import PluginError
from ftengine_builtins.tasks import DrawnTokens, PolicyLoss
from ftengine_builtins.tasks.policy_losses import CISPO, DAPO, GRPO, GSPO, LOSSES, RLOO, DrGRPO, require_rising

NAN = math.nan
# (loss, rewards of two groups, advantages): s of (0, 0, 3) is √3, of (1, 2, 3) it is 1, of all six √1.9.
ADVANTAGES = {
    "less the mean, by the deviation": (
        GRPO(),
        [[0, 0, 3], [1, 2, 3]],
        [[-0.57732, -0.57732, 1.15463], [-0.9999, 0, 0.9999]],
    ),
    "by the deviation of all": (
        GRPO(scale_rewards="batch"),
        [[0, 0, 3], [1, 2, 3]],
        [[-0.72538, -0.72538, 1.45077], [-0.72538, 0, 0.72538]],
    ),
    "less the mean alone": (DrGRPO(), [[0, 0, 3], [1, 2, 3]], [[-1, -1, 2], [-1, 0, 1]]),
    "less the mean of the others": (RLOO(), [[0, 0, 3], [1, 2, 3]], [[-1.5, -1.5, 3], [-1.5, 0, 1.5]]),
    "none without spread": (GRPO(), [[0.1, 0.1, 0.1]], [[0, 0, 0]]),
    "none of an answer without reward": (DrGRPO(), [[NAN, 0, 1], [NAN, NAN, 5]], [[0, -0.5, 0.5], [0, 0, 0]]),
    "the others are those with a reward": (RLOO(), [[NAN, 0, 1]], [[0, -1, 1]]),
}


@pytest.mark.parametrize("case", ADVANTAGES)
def test_advantages(case):
    loss, rewards, expected = ADVANTAGES[case]
    advantages = loss.advantages(torch.tensor(rewards, dtype=torch.float64))
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


def tokens(ratios, reference=None):
    """Two answers of one and three tokens with advantages 2 and -1, of at most 5 tokens; log π_d is -1."""
    drawn = torch.full((4,), -1.0, dtype=torch.float64)
    now = (drawn + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    advantages = torch.tensor([2.0, -1.0], dtype=torch.float64)
    q = None if reference is None else now.detach() + math.log(reference)
    return DrawnTokens(now, drawn, torch.tensor([0, 1, 1, 1]), advantages, 5, q)


# Losses of tokens of ratio 1.5, 0.5, 1 and 2: -clip is -2·1.2, 0.8, 1 and 2 with ε 0.2, since a bound never helps.
VALUES = {
    "an answer's mean, of two answers": (GRPO(), -2.4 + (0.8 + 1 + 2) / 3, 2),
    "of tokens, up to a higher bound": (DAPO(), -2.56 + 3.8, 4),
    "of two answers of five tokens": (DrGRPO(), -2.4 + 3.8, 10),
    "of whole answers, of ratio 1.5 and 1": (RLOO(), -2.4 + 1, 2),
    "of answers' mean ratios, 1.5 and 1": (GSPO(), -2 * 1.0004 + 1, 2),
    "of ratios up to a bound, times log π": (
        CISPO(epsilon_high=1.2),
        -1.2 * 2 * (math.log(1.5) - 1) + 0.5 * (math.log(0.5) - 1) - 1 + 1.2 * (math.log(2) - 1),
        4,
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_and_weights(case):
    loss, expected, weight = VALUES[case]
    total, counted = loss(tokens([1.5, 0.5, 1, 2]))
    assert (total.item(), counted) == (pytest.approx(expected), weight)
    assert loss.weight(1, 5) + loss.weight(3, 5) == weight


def test_a_ratio_of_one_has_the_gradient_of_the_policy():
    """A of each token, divided as the loss is, whatever the bounds."""
    for loss, scale in ((GRPO(), (1, 3)), (DAPO(), (1, 1)), (RLOO(), (1, 1)), (GSPO(), (1, 3)), (CISPO(), (1, 1))):
        batch = tokens([1.0] * 4)
        (slope,) = torch.autograd.grad(loss(batch)[0], batch.now)
        assert slope.tolist() == pytest.approx([-2 / scale[0], *[1 / scale[1]] * 3])


def test_the_divergence_is_k3_and_none_at_the_reference():
    """Of q/π = 2 it is 2 - log 2 - 1 a token."""
    plain, near, far = (
        GRPO(beta=beta)(tokens([1.0] * 4, reference))[0].item()
        for beta, reference in ((0.0, None), (0.5, 1.0), (0.5, 2.0))
    )
    assert near == pytest.approx(plain)
    assert far == pytest.approx(plain + 2 * 0.5 * (1 - math.log(2)))


def test_what_a_bound_stops_is_counted():
    assert DAPO().is_clipped(tokens([1.27, 0.7, 1.3, 1])).tolist() == [False, True, False, False]
    assert GRPO().is_clipped(tokens([1.27, 0.7, 1.3, 1])).tolist() == [True, True, False, False]


@pytest.mark.parametrize("loss", LOSSES)
def test_those_of_the_box_rise(loss):
    require_rising(loss())
    require_rising(loss(beta=0.1))


class Falling(PolicyLoss):
    name = "falling"

    def token_losses(self, tokens):
        return -super().token_losses(tokens)


class Flat(PolicyLoss):
    name = "flat"

    def token_losses(self, tokens):
        return super().token_losses(tokens).detach()


@pytest.mark.parametrize("loss", [Falling, Flat])
def test_a_loss_that_makes_better_answers_less_likely_is_refused(loss):
    with raises(PluginError, f"loss {loss.name!r}"):
        require_rising(loss())
