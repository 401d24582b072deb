"""Under autocast and activation checkpointing, forward and backward: where fused paths break in this field."""

import pytest
import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ftengine.ops import lowrank_add, lowrank_linear, quantise_dropout

pytestmark = pytest.mark.usefixtures("backend")


def layer_then_add(x, weight, bias, a, b, scale, p=0.0, seed=None):
    return lowrank_add(linear(x, weight, bias), x, a, b, scale, p, seed)


FUNCTIONS = [lowrank_linear, layer_then_add]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_computes_as_the_composition_does_under_autocast(
    layer, composition, whole_mask, assert_as_accurate, function, p, autocast_dtype, x_dtype, weight_dtype
):
    sample, p, seed = layer((3, 7), 40, 24, 4), quantise_dropout(p), torch.tensor(3)
    sample.x = sample.x.detach().to(x_dtype).requires_grad_()
    sample.weight = sample.weight.to(weight_dtype)
    sample.dy = sample.dy.to(autocast_dtype)
    mask = whole_mask(seed, p, sample.x) if p else None
    truth = sample.to(torch.float64).run(composition, mask, p)
    for backward_too in (False, True):

        def run(compute, *arguments, backward_too=backward_too):
            with torch.autocast("cpu", autocast_dtype):
                y = compute(sample.x, sample.weight, sample.bias, sample.a, sample.b, sample.scale, *arguments)
            assert y.dtype == autocast_dtype
            with torch.autocast("cpu", autocast_dtype, enabled=backward_too):
                return [y.detach(), *torch.autograd.grad(y, (sample.x, sample.a, sample.b), sample.dy)]

        ours, plain = run(function, p, seed if p else None), run(composition, mask, p)
        assert [t.dtype for t in ours] == [autocast_dtype, x_dtype, torch.float32, torch.float32]
        assert_as_accurate(ours, plain, truth)


def test_autocast_leaves_fp64_alone(layer):
    sample = layer(9, 40, 24, 4, torch.float64)
    expected = sample.run(lowrank_linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(k, e) for k, e in zip(sample.run(lowrank_linear), expected, strict=True))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_replays_the_mask(layer, function, use_reentrant, autocast):
    sample = layer((2, 9), 40, 24, 4)

    def two_layers(x):
        y = function(x, sample.weight, sample.bias, sample.a, sample.b, 1.5, 0.4)
        return function(x.square(), sample.weight, sample.bias, sample.a, sample.b, 1.5, 0.4) + torch.relu(y)

    def run(forward):
        torch.manual_seed(17)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = forward(sample.x)
        for parameter in (sample.x, sample.a, sample.b):
            parameter.grad = None
        y.float().square().sum().backward()
        return [y, sample.x.grad, sample.a.grad, sample.b.grad, torch.get_rng_state()]

    plain = run(two_layers)
    again = run(lambda x: checkpoint(two_layers, x, use_reentrant=use_reentrant))
    assert all(torch.equal(k, e) for k, e in zip(again, plain, strict=True))
