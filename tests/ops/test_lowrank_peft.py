"""The layers against PEFT's LoRA, the implementation that this field knows."""

import pytest
import torch

from ftengine.ops import lowrank_linear

peft = pytest.importorskip("peft")


def peft_layer(sample, dtype, factor_dtype):
    """Return PEFT's LoRA layer around the sample's weights, and its two factors."""
    n, k = sample.weight.shape
    base = torch.nn.Sequential(torch.nn.Linear(k, n, dtype=dtype))
    rank = sample.a.shape[0]
    config = peft.LoraConfig(r=rank, lora_alpha=sample.scale * rank, target_modules=["0"])
    wrapped = peft.get_peft_model(base, config).base_model.model[0]
    lora_a, lora_b = wrapped.lora_A["default"].to(factor_dtype), wrapped.lora_B["default"].to(factor_dtype)
    with torch.no_grad():
        wrapped.base_layer.weight.copy_(sample.weight)
        wrapped.base_layer.bias.copy_(sample.bias)
        lora_a.weight.copy_(sample.a)
        lora_b.weight.copy_(sample.b)
    return wrapped, lora_a.weight, lora_b.weight


def run_peft(sample, dtype, factor_dtype, autocast=False):
    wrapped, a, b = peft_layer(sample, dtype, factor_dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = wrapped(sample.x)
    return [y.detach(), *torch.autograd.grad(y, (sample.x, a, b), sample.dy.to(y.dtype))]


def test_equals_peft_in_fp64(layer):
    sample = layer((2, 9), 40, 24, 4, torch.float64)
    theirs = run_peft(sample, torch.float64, torch.float64)
    torch.testing.assert_close(sample.run(lowrank_linear), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_accurate_as_peft(layer, assert_as_accurate, dtype):
    sample = layer((2, 9), 40, 24, 4, dtype)
    truth = run_peft(sample.to(torch.float64), torch.float64, torch.float64)
    assert_as_accurate(sample.run(lowrank_linear), run_peft(sample, dtype, dtype), truth)
