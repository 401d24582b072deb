"""Whole layers on CUDA, run by the host: the update as the products' C operand, for one layer and for a group."""

import pytest
import torch
from torch.nn.functional import linear

from ftengine.ops.dropout import dropout_level
from ftengine.ops.philox import keep_mask

pytestmark = pytest.mark.slow

SEED = torch.tensor(0x1234_5678_9ABC_DEF0)
SCALES = (1.5, 0.5, 2.0)


class Group:
    """Layers (N each) that read one x (…, K); every other one has a bias."""

    def __init__(self, leading, k, ns, ranks, dtype=torch.bfloat16, factor_dtype=torch.float32):
        self.x = torch.randn(*leading, k).to(dtype)
        self.weights = [torch.randn(n, k).div(k**0.5).to(dtype) for n in ns]
        self.biases = [torch.randn(n).to(dtype) if i % 2 == 0 else None for i, n in enumerate(ns)]
        self.a = [torch.randn(r, k).div(k**0.5).to(factor_dtype) for r in ranks]
        self.b = [torch.randn(n, r).div(r**0.5).to(factor_dtype) for n, r in zip(ns, ranks, strict=True)]
        self.dys = [torch.randn(*leading, n).to(dtype) for n in ns]
        self.scales = SCALES[: len(ns)]

    def run(self, ops, p):
        """Return ys, then da, db and dx, in a flat list."""
        given = (self.weights, self.biases, self.a, self.b, self.scales, p)
        ys, s, seed = ops.lowrank_group_forward(self.x, *given, SEED if p else None)
        assert seed.tolist() == (SEED.tolist() if p else [])
        given = (self.weights, self.a, self.b, self.scales, p)
        return [*ys, *ops.lowrank_group_backward(self.dys, self.x, s, seed, *given, True)]

    def compose(self, p, dtype):
        """Return the same by autograd, in a dtype."""
        x, *factors = (t.detach().to(dtype).requires_grad_() for t in (self.x, *self.a, *self.b))
        n, rows = len(self.a), self.x.numel() // self.x.shape[-1]
        mask = keep_mask(SEED, dropout_level(p), 0, rows, x.shape[-1]).bool().view(x.shape) if p else 1.0
        dropped = x * mask / (1 - p)
        ys = [
            linear(x, w.to(dtype), None if bias is None else bias.to(dtype)) + linear(linear(dropped, a), b) * scale
            for w, bias, a, b, scale in zip(
                self.weights, self.biases, factors[:n], factors[n:], self.scales, strict=True
            )
        ]
        gradients = torch.autograd.grad(ys, (*factors, x), [dy.to(dtype) for dy in self.dys])
        return [*(y.detach() for y in ys), *gradients]


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("leading", "k", "ns", "ranks"),
    [((33,), 72, (40,), (5,)), ((2, 20), 136, (72, 8, 264), (8, 8, 20)), ((130,), 64, (576, 64), (16, 40))],
)
def test_as_accurate_as_the_composition(emulated, leading, k, ns, ranks, dtype, p):
    """The update takes one more rounding than a composition that never rounds it would: the bound allows no more."""
    group = Group(leading, k, ns, ranks, dtype)
    ours, plain, truth = group.run(emulated(1, 20), p), group.compose(p, dtype), group.compose(p, torch.float64)
    for i, (k, q, r) in enumerate(zip(ours, plain, truth, strict=True)):
        assert k.shape == r.shape
        assert k.dtype == (dtype if i < len(ns) or i == len(ours) - 1 else torch.float32)
        error, unit = (k.double() - r).abs().max(), torch.finfo(dtype).eps * r.abs().max()
        assert error <= 2 * (q.double() - r).abs().max() + unit, i


def test_a_group_is_the_same_in_any_order_of_blocks_and_threads(emulated):
    group = Group((300,), 136, (264, 72), (8, 20))
    first, *others = (group.run(emulated(order, 20), 0.25) for order in (1, 2, 3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


@pytest.mark.parametrize(("k", "multiprocessors", "most"), [(136, 1, 5), (136, 132, 5), (2056, 132, 6)])
def test_beside_the_products_there_are_few_launches(emulated, emulator, k, multiprocessors, most):
    """Six where S is summed over splits of K, whose counters begin as zeros."""
    group = Group((300,), k, (264,), (16,))
    before = emulator.launches()
    group.run(emulated(1, multiprocessors), 0.25)
    assert emulator.launches() - before <= most


def test_a_saved_s_of_any_strides_gives_the_same_gradients(emulated):
    group, ops = Group((20,), 72, (40, 24), (5, 3)), emulated()
    _, s, seed = ops.lowrank_group_forward(
        group.x, group.weights, group.biases, group.a, group.b, group.scales, 0.25, SEED
    )
    given = (seed, group.weights, group.a, group.b, group.scales, 0.25, True)
    plain = ops.lowrank_group_backward(group.dys, group.x, s, *given)
    strided = ops.lowrank_group_backward(group.dys, group.x, s.T.contiguous().T, *given)
    assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True))


def test_a_list_that_lacks_a_layer_is_an_error(emulated):
    group, ops = Group((20,), 72, (40, 24), (5, 3)), emulated()
    given = (group.weights, group.biases, group.a, group.b[:1], group.scales, 0.0)
    with pytest.raises(RuntimeError):
        ops.lowrank_group_forward(group.x, *given, None)
    s = torch.zeros(20, 8, dtype=torch.bfloat16)
    given = (s, torch.empty(0), group.weights, group.a, group.b, group.scales, 0.0)
    with pytest.raises(RuntimeError):
        ops.lowrank_group_backward(group.dys[:1], group.x, *given, True)


def test_a_single_layer_is_a_group_of_one(emulated):
    group, ops = Group((2, 20), 24, (16,), (4,)), emulated()
    (weight,), (bias,), (a,), (b,), (dy,) = group.weights, group.biases, group.a, group.b, group.dys
    y, s, seed = ops.lowrank_forward(group.x, weight, bias, a, b, SCALES[0], 0.25, SEED)
    given = (dy, group.x, s, seed, weight, a, b, SCALES[0], 0.25)
    da, db, dx = ops.lowrank_backward(*given, True)
    assert all(torch.equal(k, q) for k, q in zip((y, da, db, dx), group.run(ops, 0.25), strict=True))
    *gradients, none = ops.lowrank_backward(*given, False)
    assert torch.equal(gradients[0], da)
    assert torch.equal(gradients[1], db)
    assert none.shape == (0,)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_seed_is_drawn_where_there_is_dropout_alone(emulated, p):
    group, before = Group((9,), 24, (16,), (4,)), torch.get_rng_state()
    _, _, seed = emulated().lowrank_group_forward(group.x, group.weights, [None], group.a, group.b, [1.0], p, None)
    assert seed.shape == (() if p else (0,))
    assert torch.equal(torch.get_rng_state(), before) == (not p)


@pytest.mark.parametrize(("m", "k", "n"), [(0, 16, 8), (4, 16, 0)])
def test_empty_sizes_give_zeros(emulated, m, k, n):
    y, da, db, dx = Group((m,), k, (n,), (4,)).run(emulated(), 0.25)
    assert (y.shape, dx.shape) == ((m, n), (m, k))
    assert not any(gradient.any() for gradient in (da, db, dx))
