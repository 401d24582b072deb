"""lowrank_linear: its mathematics, what it keeps, and what it refuses."""

import pytest
import torch
from expected import raises

from ftengine.ops import lowrank_linear, quantise_dropout

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [
    (33, 40, 24, 4),
    (7, 13, 11, 1),
    ((2, 3, 5), 17, 8, 8),
    (0, 8, 8, 2),
    ((2, 0), 5, 4, 1),
    (3, 0, 4, 2),
    ((2, 33), 96, 100, 3),
]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_match_finite_differences(layer, p):
    sample = layer((2, 3), 7, 5, 2, torch.float64)
    seed = torch.tensor(11) if p else None

    def function(x, a, b):
        return lowrank_linear(x, sample.weight, sample.bias, a, b, 1.5, p, seed)

    assert torch.autograd.gradcheck(function, (sample.x, sample.a, sample.b))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "factor_dtype"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_the_composition(
    layer, composition, whole_mask, assert_as_accurate, shape, dtype, factor_dtype, p
):
    sample, p, seed = layer(*shape, dtype, factor_dtype), quantise_dropout(p), torch.tensor(3)
    mask = whole_mask(seed, p, sample.x) if p else None
    ours = sample.run(lowrank_linear, p, seed if p else None)
    plain = sample.run(composition, mask, p)
    truth = sample.to(torch.float64).run(composition, mask, p)
    assert_as_accurate(ours, plain, truth)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_strides_and_offsets_do_not_matter(layer, p):
    sample, seed = layer((6, 4), 16, 12, 3), torch.tensor(9) if p else None
    expected = sample.run(lowrank_linear, p, seed)
    padded = torch.randn(6, 4, 33)
    padded[..., 1::2] = sample.x.detach()
    for x in (
        sample.x.detach().transpose(0, 1).contiguous().transpose(0, 1),
        padded[..., 1::2],
        torch.cat((torch.zeros(1), sample.x.detach().flatten()))[1:].view(6, 4, 16),
    ):
        sample.x = x.requires_grad_()
        sample.weight = sample.weight.T.contiguous().T
        sample.dy = sample.dy.transpose(0, 1).contiguous().transpose(0, 1)
        torch.testing.assert_close(sample.run(lowrank_linear, p, seed), expected)


def saved_bytes(known, function):
    """Return the bytes kept for the backward in storages other than those of the known tensors."""
    known = {t.untyped_storage().data_ptr() for t in known}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function()  # alive, so that no storage is recycled
    del y
    return sum(kept.values())


@pytest.mark.parametrize(("dtype", "factor_dtype"), DTYPES)
def test_only_s_and_the_seed_are_kept(layer, dtype, factor_dtype):
    sample = layer((4, 5), 64, 48, 2, dtype, factor_dtype)
    known = (sample.x, sample.weight, sample.bias, sample.a, sample.b)
    s = 20 * 2 * dtype.itemsize
    assert saved_bytes(known, lambda: lowrank_linear(*known, 1.0)) == s
    assert saved_bytes(known, lambda: lowrank_linear(*known, 1.0, 0.1)) == s + 8


def test_first_layer_gets_no_input_gradient(layer):
    sample = layer(20, 16, 12, 3)
    _, _, da, db = sample.run(lowrank_linear, 0.1, torch.tensor(4))
    y = lowrank_linear(sample.x.detach(), sample.weight, None, sample.a, sample.b, 1.5, 0.1, torch.tensor(4))
    y.backward(sample.dy)
    torch.testing.assert_close((sample.a.grad, sample.b.grad), (da, db))


def test_dropped_elements_count_for_nothing_even_if_infinite(whole_mask):
    p, seed = 0.5, torch.tensor(3)
    x = torch.ones(4, 16)
    x[~whole_mask(seed, p, x)] = float("inf")
    assert torch.ops.ftengine.lowrank_shrink(x, torch.ones(1, 16), p, seed).isfinite().all()


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_shapes_propagate_on_the_meta_device(layer, p):
    sample = layer((2, 5), 16, 12, 3).to(torch.float32)
    meta = {name: getattr(sample, name).detach().to("meta") for name in ("x", "weight", "bias", "a", "b")}
    y = lowrank_linear(**meta | {"x": meta["x"].requires_grad_()}, scale=1.0, p=p)
    y.sum().backward()
    assert y.shape == (2, 5, 12)
    assert meta["x"].grad.shape == (2, 5, 16)


WRONG = [
    ({"a": (3, 15)}, "a (r, K) is (3, 15) but x (..., K) is (5, 16)"),
    ({"b": (12, 4)}, "b (N, r) is (12, 4) but a (r, K) is (3, 16)"),
    ({"weight": (12, 15)}, "weight (N, K) is (12, 15) but x (..., K) is (5, 16)"),
    ({"weight": (11, 16)}, "weight (N, K) is (11, 16) but b (N, r) is (12, 3)"),
    ({"bias": (11,)}, "bias (N,) is (11,) but weight (N, K) is (12, 16)"),
]


@pytest.mark.parametrize(("shapes", "message"), WRONG)
def test_shapes_that_disagree_are_named_in_the_error(shapes, message):
    right = {"x": (5, 16), "weight": (12, 16), "bias": (12,), "a": (3, 16), "b": (12, 3)}
    with raises(ValueError, message):
        lowrank_linear(**{name: torch.zeros(shape) for name, shape in (right | shapes).items()}, scale=1.0)


def test_a_weight_that_would_train_is_refused(layer):
    sample = layer(5, 16, 12, 3)
    weight = sample.weight.requires_grad_()
    with raises(ValueError, "weight requires a gradient"):
        lowrank_linear(sample.x, weight, None, sample.a, sample.b, 1.0)
    with torch.no_grad():
        lowrank_linear(sample.x, weight, None, sample.a, sample.b, 1.0)


def test_second_derivatives_are_refused_rather_than_wrong(layer):
    sample = layer(5, 16, 12, 3)
    y = lowrank_linear(sample.x, sample.weight, None, sample.a, sample.b, 1.0)
    (dx,) = torch.autograd.grad(y.square().sum(), sample.x, create_graph=True)
    with raises(RuntimeError, "once_differentiable"):
        dx.sum().backward()
