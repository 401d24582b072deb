"""lowrank_add: the same update on the output of any frozen layer."""

import pytest
import torch
from expected import raises
from torch.nn.functional import linear

from ftengine.ops import lowrank_add, lowrank_linear, quantise_dropout

pytestmark = pytest.mark.usefixtures("backend")


def layer_then_add(x, weight, bias, a, b, scale, p=0.0, seed=None):
    return lowrank_add(linear(x, weight, bias), x, a, b, scale, p, seed)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_match_finite_differences(layer, p):
    sample = layer((2, 3), 7, 5, 2, torch.float64)
    y, seed = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.tensor(11) if p else None

    def function(y, x, a, b):
        return lowrank_add(y, x, a, b, 1.5, p, seed)

    assert torch.autograd.gradcheck(function, (y, sample.x, sample.a, sample.b))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(33, 40, 24, 4), ((2, 5), 13, 11, 1), (0, 8, 8, 2), ((2, 0), 5, 4, 1), (3, 0, 4, 2)])
def test_as_accurate_as_the_composition(layer, composition, whole_mask, assert_as_accurate, shape, dtype, p):
    sample, p, seed = layer(*shape, dtype, torch.float32), quantise_dropout(p), torch.tensor(3)
    mask = whole_mask(seed, p, sample.x) if p else None
    truth = sample.to(torch.float64).run(composition, mask, p)
    assert_as_accurate(sample.run(layer_then_add, p, seed if p else None), sample.run(composition, mask, p), truth)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_same_function_as_lowrank_linear(layer, p):
    sample, seed = layer(20, 16, 12, 3), torch.tensor(9) if p else None
    torch.testing.assert_close(sample.run(layer_then_add, p, seed), sample.run(lowrank_linear, p, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("y_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keeps_the_outputs_dtype(layer, dtype, y_dtype):
    sample = layer(20, 16, 12, 3, dtype, torch.float32)
    y = torch.randn(20, 12, dtype=y_dtype, requires_grad=True)
    out = lowrank_add(y, sample.x, sample.a, sample.b, 1.5, 0.1)
    assert out.dtype == y_dtype
    out.sum().backward()
    dtypes = [t.grad.dtype for t in (y, sample.x, sample.a, sample.b)]
    assert dtypes == [y_dtype, dtype, torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ((5, 11), "(5, 11)"),
        ((4, 12), "(4, 12)"),
    ],
)
def test_shapes_that_disagree_are_named_in_the_error(layer, y, message):
    sample = layer(5, 16, 12, 3)
    with raises(ValueError, message):
        lowrank_add(torch.zeros(y), sample.x, sample.a, sample.b, 1.0)
