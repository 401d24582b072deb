"""lowrank_merge_: W += scale · B A, accumulated wide and rounded once."""

import pytest
import torch
from expected import raises

from ftengine.ops import lowrank_linear, lowrank_merge_, reference

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 24, 4), (13, 11, 1)])
def test_rounds_once(layer, shape, dtype, factor_dtype):
    sample = layer(1, *shape, dtype, factor_dtype)
    truth = sample.weight.double() + 1.5 * sample.b.double() @ sample.a.double()
    lowrank_merge_(sample.weight, sample.a, sample.b, 1.5)
    # Half a unit in the last place of the result, and what fp32 may add to it.
    allowed = truth.abs() * (torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps)
    assert ((sample.weight.double() - truth).abs() <= allowed + torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_layer_computes_what_the_pair_did(layer, dtype):
    sample = layer(9, 40, 24, 4, dtype)
    expected = lowrank_linear(sample.x, sample.weight, sample.bias, sample.a, sample.b, 1.5)
    assert lowrank_merge_(sample.weight, sample.a, sample.b, 1.5) is sample.weight
    torch.testing.assert_close(torch.nn.functional.linear(sample.x, sample.weight, sample.bias), expected)


def test_chunks_of_rows_and_transposed_weights_change_nothing(layer, monkeypatch):
    sample = layer(1, 40, 24, 4)
    transposed = sample.weight.T.contiguous().T
    lowrank_merge_(sample.weight, sample.a, sample.b, 1.5)
    monkeypatch.setattr(reference, "CHUNK_ON_CPU", 100)
    lowrank_merge_(transposed, sample.a, sample.b, 1.5)
    torch.testing.assert_close(transposed, sample.weight)


def test_factors_that_are_views_of_the_weight_are_read_before_it_changes(layer):
    weight = layer(1, 40, 24, 4).weight
    expected = weight + 1.5 * weight[:, :3] @ weight[:3]
    torch.testing.assert_close(lowrank_merge_(weight, weight[:3], weight[:, :3], 1.5), expected)


def test_autocast_does_not_lower_the_precision(layer):
    sample = layer(1, 40, 24, 4)
    expected = sample.weight.clone()
    lowrank_merge_(expected, sample.a, sample.b, 1.5)
    with torch.autocast("cpu", torch.bfloat16):
        lowrank_merge_(sample.weight, sample.a, sample.b, 1.5)
    assert torch.equal(sample.weight, expected)


def test_a_parameter_may_be_merged_into(layer):
    sample = layer(1, 40, 24, 4)
    lowrank_merge_(torch.nn.Parameter(sample.weight), sample.a, sample.b, 1.5)


def test_shapes_that_disagree_are_named_in_the_error(layer):
    sample = layer(1, 40, 24, 4)
    with raises(ValueError, "(23, 40)", "(24, 4)"):
        lowrank_merge_(sample.weight[1:], sample.a, sample.b, 1.5)


def test_autograd_notices_that_the_weight_changed(layer):
    sample = layer(1, 40, 24, 4)
    x = torch.randn(3, 40, requires_grad=True)
    y = torch.nn.functional.linear(x, sample.weight)
    lowrank_merge_(sample.weight, sample.a, sample.b, 1.5)
    with raises(RuntimeError, "inplace"):
        y.sum().backward()
