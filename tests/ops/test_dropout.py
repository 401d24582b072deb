"""Probability and seed of dropout, and dropout itself."""

import pytest
import torch
from expected import raises

from ftengine.ops import draw_seed, quantise_dropout
from ftengine.ops.elementwise import dropout
from ftengine.ops.philox import keep_mask

SEED = torch.tensor(2**62 + 12345)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_probability_is_refused(p):
    with raises(ValueError, "[0, 1)"):
        quantise_dropout(p)


def test_seed_follows_torchs_generator():
    state = torch.get_rng_state()
    first, second = draw_seed(), draw_seed()
    torch.set_rng_state(state)
    assert torch.equal(draw_seed(), first)
    assert not torch.equal(first, second)
    assert first.shape == ()
    assert first.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 5, 13, 11), (70, 1001)])
@pytest.mark.parametrize("n", [1, 6554, 65535])
def test_dropout_is_the_first_row_of_the_mask_forward_and_backward(backend, shape, dtype, n):
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    kept = keep_mask(SEED, n, 0, 1, x.numel()).view(shape).bool()
    factor = 65536 / (65536 - n)
    expected, gradient = ((torch.where(kept, t.float(), 0) * factor).to(dtype) for t in (x, dy))
    leaf = x.clone().requires_grad_()
    y = dropout(leaf, n / 65536, SEED)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y, leaf, dy)[0], gradient)


def test_dropped_elements_are_zeros_whatever_they_were(backend):
    x = torch.full((999,), float("inf"))
    y = dropout(x, 0.5, SEED)
    assert set(y.tolist()) == {0.0, float("inf")}


def test_dropout_keeps_the_seed_alone_and_any_layout(backend):
    kept, x = [], torch.randn(6, 10).T.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = dropout(x, 0.25, SEED)
    assert [t.numel() for t in kept] == [1]
    assert y.stride() == x.stride()
    assert torch.equal(y, dropout(x.detach().contiguous(), 0.25, SEED))
    torch.relu_(y).sum().backward()  # what follows may work in place
