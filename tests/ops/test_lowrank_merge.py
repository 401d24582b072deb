"""lowrank_merge_: W += scale · B A, accumulated wide and rounded once."""

import pytest
import torch

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
