"""Schedules are pure functions of the step."""

from itertools import pairwise

import pytest
import torch

from ftengine.run.recipe import TrainSection
from ftengine.training.schedule import factor, plan_steps, warmup_steps


def test_warmup_is_a_share_below_one_and_a_number_of_steps_above():
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(10, 100) == 10
    assert warmup_steps(1000, 100) == 100
    assert warmup_steps(0, 100) == 0


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 11), (1.11, 12), (0.7, 7), (3, 30), (1e-12, 1)])
def test_a_decimal_does_not_add_a_step(epochs, steps):
    """1.1 · 10 is 11.000000000000002, 0.07 · 100 is 7.000000000000001."""
    assert plan_steps(80, TrainSection(epochs=epochs)).total == steps
    assert warmup_steps(0.07, 100) == 7


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
