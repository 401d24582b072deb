"""Bottleneck adapters start as the base, train alone, and leave the rest of the model as it works."""

from __future__ import annotations

import pytest
import torch
from adapter_models import GENERATING, KNOWN, batch, bottlenecks, logits, opened, prepared, shake
from torch import nn

from ftengine.model import trainable

PLACEMENTS = ["houlsby", "pfeiffer", "parallel"]
CASES = [(name, placement) for name in KNOWN for placement in PLACEMENTS]


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_outputs_equal_the_base_before_training_and_differ_after(name: str, placement: str) -> None:
    base = logits(opened(name).module)
    _, loaded = prepared(name, placement=placement)
    assert torch.equal(logits(loaded.module), base)
    for adapter in bottlenecks(loaded.module).values():
        shake(adapter)
    assert not torch.allclose(logits(loaded.module), base, atol=1e-3)


@pytest.mark.parametrize("init", ["bert", "houlsby"])
def test_initialisations_of_the_papers_start_near_the_base(init: str) -> None:
    base = logits(opened("bert").module)
    _, loaded = prepared("bert", placement="houlsby", init=init)
    moved = (logits(loaded.module) - base).norm() / base.norm()
    assert 0 < moved < 0.05


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_bert_computes_the_papers_formula(placement: str) -> None:
    _, loaded = prepared("bert", placement=placement, sublayers=["attention", "output"])
    module = loaded.module
    shake(module)
    layer = module.bert.encoder.layer[0]
    x = torch.randn(2, 5, 16)

    def sublayer(part: nn.Module, h: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        read = {"houlsby": h, "pfeiffer": part.LayerNorm(h + residual), "parallel": residual}[placement]
        return part.LayerNorm(residual + h + added(part.dropout.bottleneck, read))

    attended = sublayer(layer.attention.output, layer.attention.output.dense(layer.attention.self(x)[0]), x)
    expected = sublayer(layer.output, layer.output.dense(layer.intermediate.dense(attended).relu()), attended)
    layer.intermediate.intermediate_act_fn = nn.ReLU()
    torch.testing.assert_close(layer(x), expected)


def added(adapter: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute scaling · up(act(down(x))) from the adapter's weights."""
    hidden = adapter.activation(x @ adapter.down.weight.T + adapter.down.bias)
    return adapter.scaling * (hidden @ adapter.up.weight.T + adapter.up.bias)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", GENERATING)
def test_generation_with_cache_equals_generation_without(name: str, placement: str) -> None:
    strategy, loaded = prepared(name, placement=placement, sublayers=["attention", "output"])
    shake(loaded.module)
    inputs = {key: value for key, value in batch(loaded.module).items() if key != "labels"}
    if name != "t5":  # left padding
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (loaded.module.generate(**inputs, **options, use_cache=cache) for cache in (True, False))
    assert torch.equal(with_cache, without)
    assert strategy.matches()["attention"]


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "resnet"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    _, loaded = prepared(name, placement="pfeiffer", sublayers=["attention", "output"])
    shake(loaded.module)
    plain = gradients(loaded.module)
    loaded.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(gradients(loaded.module), plain)
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module.train()(**batch(module)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(module).items()}


# Behind a layer's linear maps, behind its convolutions.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "resnet"])
def test_torch_compile_takes_the_model_as_one_graph(name: str) -> None:
    _, loaded = prepared(name, placement="pfeiffer")
    shake(loaded.module)
    expected = logits(loaded.module)
    compiled = torch.compile(loaded.module, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(**batch(loaded.module)).logits, expected)
    torch.compiler.reset()
