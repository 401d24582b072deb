"""Schedules are pure functions of the step."""

from itertools import pairwise

import pytest
import torch

from ftengine.training.schedule import factor, warmup_steps


def test_warmup_is_a_share_below_one_and_a_number_of_steps_above():
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(10, 100) == 10
    assert warmup_steps(1000, 100) == 100
    assert warmup_steps(0, 100) == 0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_grow_to_the_peak_and_never_reach_zero_before_the_end(schedule):
    rates = [factor(schedule, step, 50, 5) for step in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert all(rate > 0 for rate in rates)
    assert all(a >= b for a, b in pairwise(rates[5:]))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_equal_those_of_transformers(schedule):
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    peer = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[schedule]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    peers = peer(optimizer, 0, 40)
    for step in range(40):
        assert factor(schedule, step, 40, 0) == pytest.approx(peers.get_last_lr()[0])
        optimizer.step()
        peers.step()
