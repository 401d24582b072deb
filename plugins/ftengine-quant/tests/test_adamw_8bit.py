"""AdamW with 8-bit state: it follows AdamW, takes the memory that it promises, and goes on from a checkpoint."""

import types

import pytest
import torch
from expected import raises
from pydantic import ValidationError
from torch import nn

from ftengine.errors import RecipeError
from ftengine.testing import check_optimizer
from ftengine_quant.optimizers import AdamW8bit


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))


def groups(net, lr=0.01):
    matrices, vectors = ([p for p in net.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False))
    return [{"params": p, "lr": lr, "weight_decay": wd} for p, wd in ((matrices, 0.1), (vectors, 0.0))]


def step(net, optimizer, seed):
    torch.manual_seed(seed)
    x = torch.randn(16, 64)
    optimizer.zero_grad()
    (net(x) - x.flip(1)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("options", [{}, {"min_8bit_size": 1}])
def test_the_conformance_suite(options):
    check_optimizer(lambda: AdamW8bit(AdamW8bit.Config(**options)))


def test_it_follows_adamw():
    ours, theirs, start = module(), module(), module()
    eight, plain = AdamW8bit().build(groups(ours)), torch.optim.AdamW(groups(theirs))
    for seed in range(20):
        step(ours, eight, seed)
        step(theirs, plain, seed)
    for mine, other, first in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        assert not torch.equal(mine, other)
        assert (mine - other).norm() < 0.1 * (other - first).norm()


def test_state_takes_a_byte_for_each_moment():
    net = module()
    optimizer = AdamW8bit().build(groups(net))
    step(net, optimizer, 0)
    for parameter in net.parameters():
        state = optimizer.state[parameter]
        wide = parameter.numel() < 4096
        assert {state[name].dtype for name in ("state1", "state2")} == {torch.float32 if wide else torch.uint8}
        scales = 0 if wide else state["absmax1"].nbytes
        assert state["state1"].nbytes + scales == parameter.numel() * (4 if wide else 1 + 4 / 256)


def test_small_parameters_too_where_it_is_asked_for():
    net = module()
    optimizer = AdamW8bit(AdamW8bit.Config(min_8bit_size=1)).build(groups(net))
    step(net, optimizer, 0)
    assert {state["state1"].dtype for state in optimizer.state.values()} == {torch.uint8}


def test_options_reach_the_step():
    nets = [module() for _ in range(3)]
    configs = [{}, {"betas": (0.5, 0.9)}, {"eps": 0.1}]
    for net, options in zip(nets, configs, strict=True):
        optimizer = AdamW8bit(AdamW8bit.Config(**options)).build(groups(net))
        for seed in range(2):
            step(net, optimizer, seed)
    assert not torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert not torch.equal(nets[0][0].weight, nets[2][0].weight)


def test_another_device_is_refused():
    parameter = types.SimpleNamespace(device=torch.device("mps"))
    with raises(RecipeError, "mps"):
        AdamW8bit().build([{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}])


@pytest.mark.parametrize("options", [{"eps": 0}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"bits": 4}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        AdamW8bit.Config(**options)
