"""lowrank_linears: layers that read one x, against each layer alone under the same mask."""

from functools import partial

import pytest
import torch
from expected import raises
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ftengine.ops import lowrank_linear, lowrank_linears, quantise_dropout
from ftengine.ops.composite import lowrank_group_backward, lowrank_group_forward
from ftengine.ops.schemas import OPERATORS

pytestmark = pytest.mark.usefixtures("backend")


def group(leading, k, layers, dtype, factor_dtype=torch.float32):
    """Return x, the lists that lowrank_linears takes, and dy of each layer; layers are (N, r)."""
    x = torch.randn(*leading, k, dtype=torch.float64).to(dtype).requires_grad_()
    weights = [(torch.randn(n, k) / max(k, 1) ** 0.5).to(dtype) for n, _ in layers]
    biases = [torch.randn(n, dtype=dtype) if n % 2 else None for n, _ in layers]
    a = [(torch.randn(r, k) / max(k, 1) ** 0.5).to(factor_dtype).requires_grad_() for _, r in layers]
    b = [(torch.randn(n, r) / r**0.5).to(factor_dtype).requires_grad_() for n, r in layers]
    dys = [torch.randn(*leading, n, dtype=torch.float64).to(dtype) for n, _ in layers]
    return x, (weights, biases, a, b, [1.5 + i for i in range(len(layers))]), dys


def run(x, lists, dys, p, seed, together):
    if together:
        ys = lowrank_linears(x, *lists, p, seed)
    else:
        ys = [lowrank_linear(x, *layer, p, seed) for layer in zip(*lists, strict=True)]
    known = (x, *lists[2], *lists[3])
    return [*(y.detach() for y in ys), *torch.autograd.grad(ys, known, dys)]


def check(x, lists, dys, p, seed):
    """Hold max|together - truth| to twice the error of the layers alone, and four roundings of what is summed up.

    The last are those of the same sums without signs: a sum whose terms cancel may be as wrong. Four, because the
    error of a layer with few outputs is by chance far below what an order of summation gives.
    """
    together, alone = (run(x, lists, dys, p, seed, which) for which in (True, False))

    def exact(of):
        def wide(t):
            return None if t is None else of(t.detach().double()).requires_grad_(t.requires_grad)

        layers = [[wide(t) for t in ts] for ts in lists[:4]]
        return run(wide(x), (*layers, lists[4]), [of(dy.double()) for dy in dys], p, seed, False)

    for i, (k, q, r, size) in enumerate(zip(together, alone, exact(torch.clone), exact(torch.abs), strict=True)):
        assert (k.shape, k.dtype) == (q.shape, q.dtype)
        if r.numel():
            roundings = 4 * torch.finfo(x.dtype).eps * size.max()
            error, allowed = (k.double() - r).abs().max(), 2 * (q.double() - r).abs().max() + roundings
            assert error <= allowed, f"result {i}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_match_finite_differences(p):
    x, (weights, biases, *factors, scales), _ = group((2, 3), 7, [(5, 2), (4, 1)], torch.float64, torch.float64)
    flat, seed = [*factors[0], *factors[1]], torch.tensor(11) if p else None
    assert torch.autograd.gradcheck(
        lambda x, *f: lowrank_linears(x, weights, biases, f[:2], f[2:], scales, p, seed), (x, *flat)
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    leading=st.sampled_from([(1,), (40,), (3, 17), (0,), (2, 0), ()]),
    k=st.integers(0, 300),
    layers=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), min_size=1, max_size=4),
    p=st.sampled_from([0.0, 0.1, 0.6]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    factor_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@example((3, 17), 279, [(1, 1), (23, 1), (24, 1), (136, 9)], 0.0, torch.float32, torch.float32)
@example(leading=(1,), k=1, layers=[(144, 1), (51, 2)], p=0.0, dtype=torch.float32, factor_dtype=torch.float32)
def test_as_accurate_as_each_layer_alone(leading, k, layers, p, dtype, factor_dtype):
    torch.manual_seed(0)
    check(*group(leading, k, layers, dtype, factor_dtype), quantise_dropout(p), torch.tensor(5) if p else None)


@pytest.mark.parametrize("ranks", [(200, 100), (0, 3)])
def test_ranks_beyond_what_a_kernel_takes_share_a_mask_too(ranks):
    check(*group((9,), 40, list(zip((24, 16), ranks, strict=True)), torch.float32), 0.25, torch.tensor(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_made_of_their_parts_compute_the_same(dtype):
    """What a device does whose library has kernels for the parts alone."""
    x, (weights, biases, a, b, scales), dys = group((3, 17), 40, [(24, 4), (9, 3)], dtype)
    x, seed = x.detach(), torch.tensor(3)
    made = (partial(f, OPERATORS) for f in (lowrank_group_forward, lowrank_group_backward))
    results = []
    for forward, backward in ((OPERATORS.lowrank_group_forward, OPERATORS.lowrank_group_backward), tuple(made)):
        with torch.no_grad():
            ys, s, used = forward(x, weights, biases, a, b, scales, 0.25, seed)
            results.append([*ys, s, used, *backward(dys, x, s, used, weights, a, b, scales, 0.25, True)])
    ours, parts = results
    unit = torch.finfo(dtype).eps
    for k, e in zip(ours, parts, strict=True):
        torch.testing.assert_close(k, e, rtol=0, atol=8 * unit * float(e.abs().max()))


def test_an_output_that_is_not_used_and_an_input_without_gradient():
    x, lists, dys = group((9,), 40, [(24, 4), (16, 4)], torch.float32)
    ys = lowrank_linears(x.detach(), *lists, 0.1, torch.tensor(5))
    da, db = torch.autograd.grad(ys[1], (lists[2][1], lists[3][0]), dys[1])
    alone = lowrank_linear(x.detach(), *(part[1] for part in lists), 0.1, torch.tensor(5))
    torch.testing.assert_close(da, *torch.autograd.grad(alone, lists[2][1], dys[1]))
    assert not db.any()


def test_lists_of_other_lengths_are_refused():
    x, (weights, biases, a, b, scales), _ = group((9,), 40, [(24, 4), (16, 4)], torch.float32)
    with raises(ValueError, "2 weights", "1 a"):
        lowrank_linears(x, weights, biases, a[:1], b, scales)
