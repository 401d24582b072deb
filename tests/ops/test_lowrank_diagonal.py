"""A diagonal between A and B, as AdaLoRA and VeRA have it."""

import pytest
import torch
from torch.nn.functional import linear

from ftengine.ops import lowrank_add, lowrank_linear, quantise_dropout

pytestmark = pytest.mark.usefixtures("backend")


def naive(x, weight, bias, a, b, scale, diagonal, mask=None, p=0.0):
    """Return x Wᵀ + bias + scale · ((dropout(x) Aᵀ) ∘ d) Bᵀ, as it is written."""
    a, b, diagonal = (t.to(x.dtype) for t in (a, b, diagonal))
    dropped = x if mask is None else torch.where(mask.view(x.shape), x, 0) / (1 - p)
    return linear(x, weight, bias) + scale * linear(linear(dropped, a) * diagonal, b)


def gradients(y, wanted, dy):
    return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_match_finite_differences(layer, p, frozen):
    sample, seed = layer((2, 3), 7, 5, 2, torch.float64), torch.tensor(11) if p else None
    diagonal = torch.randn(2, dtype=torch.float64, requires_grad=True)
    a, b = (t.detach().requires_grad_(not frozen) for t in (sample.a, sample.b))

    def applied(x, a, b, d):
        return lowrank_linear(x, sample.weight, sample.bias, a, b, 1.5, p, seed, diagonal=d)

    def added(x, a, b, d):
        return lowrank_add(linear(x, sample.weight, sample.bias), x, a, b, 1.5, p, seed, diagonal=d)

    assert torch.autograd.gradcheck(applied, (sample.x, a, b, diagonal))
    assert torch.autograd.gradcheck(added, (sample.x, a, b, diagonal))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("dtype", "factor_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("shape", [(33, 40, 24, 4), (7, 13, 11, 1), ((2, 3, 5), 17, 8, 8)])
def test_as_accurate_as_the_formula(layer, whole_mask, assert_as_accurate, shape, dtype, factor_dtype, p):
    sample, p, seed = layer(*shape, dtype, factor_dtype), quantise_dropout(p), torch.tensor(3)
    d = torch.randn(sample.a.shape[0], dtype=factor_dtype, requires_grad=True)
    mask = whole_mask(seed, p, sample.x) if p else None

    def run(function, s, d, *arguments, **options):
        y = function(s.x, s.weight, s.bias, s.a, s.b, s.scale, *arguments, **options)
        return gradients(y, (s.x, s.a, s.b, d), s.dy)

    exact, exact_d = sample.to(torch.float64), d.detach().double().requires_grad_()
    plain, truth = run(naive, sample, d, d, mask, p), run(naive, exact, exact_d, exact_d, mask, p)

    def check(ours):
        assert_as_accurate(ours[:4], plain[:4], truth[:4])
        # Few numbers, each a sum in which terms cancel: the unit is that of the terms, not of what is left of them.
        terms = (truth[3] * exact.b / exact_d).abs().sum(0).max()
        allowed = 2 * (plain[4] - truth[4]).abs().max() + torch.finfo(dtype).eps * terms
        assert (ours[4] - truth[4]).abs().max() <= allowed
        assert ours[4].dtype == factor_dtype

    check(run(lowrank_linear, sample, d, p, seed if p else None, diagonal=d))

    def added(x, weight, bias, *others, **options):
        return lowrank_add(linear(x, weight, bias), x, *others, **options)

    check(run(added, sample, d, p, seed if p else None, diagonal=d))


def test_a_diagonal_of_ones_changes_nothing_and_one_alone_can_train(layer):
    sample = layer((6, 4), 16, 12, 3)
    arguments = (sample.x, sample.weight, sample.bias, sample.a.detach(), sample.b.detach(), 2.0)
    d = torch.ones(3, requires_grad=True)
    y = lowrank_linear(*arguments, diagonal=d)
    assert torch.equal(y, lowrank_linear(*arguments))
    (gradient,) = torch.autograd.grad(y, d, sample.dy)
    expected = 2.0 * ((sample.x @ sample.a.T) * (sample.dy @ sample.b)).sum((0, 1))
    torch.testing.assert_close(gradient, expected)
