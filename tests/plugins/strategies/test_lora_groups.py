"""LoRA layers of one input compute together where nothing else could be meant, and alone elsewhere."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from lora_models import prepared
from torch import nn

from ftengine.api import LoadedModel
from ftengine.testing import training_context
from ftengine_builtins.fast_paths.grouped_layers import GroupedLayers
from ftengine_builtins.strategies.lora_layers import lora_layers


class Attention(nn.Module):
    """Reads q, k and v from one input, or k and v from another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, n) for n in (16, 8, 8, 16))

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        q = self.q(x)
        k = self.k(x)
        v = self.v(x)
        return self.out(torch.cat([torch.tanh(k) * v, q[..., :8]], -1)) + x


def alone(layers: int = 2, **options) -> LoadedModel:
    torch.manual_seed(1)
    loaded = LoadedModel(nn.Sequential(*(Attention() for _ in range(layers))), None, "", None)
    prepared(loaded, targets=["q", "k", "v", "out"], **options)
    for layer in lora_layers(loaded.module).values():
        nn.init.normal_(layer.lora_b, std=0.1)
    return loaded


@pytest.fixture
def grouped():
    with ExitStack() as stack:

        def make(layers: int = 2, **options) -> LoadedModel:
            loaded = alone(layers, **options)
            found = stack.enter_context(GroupedLayers().activate(loaded, training_context()))
            assert found == {"groups of layers": layers}
            return loaded

        yield make


def gradients(module: nn.Module, x: torch.Tensor, **settings) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    run = module
    if settings.pop("checkpoint", None):
        reentrant = settings.pop("use_reentrant")

        def run(x):
            for block in module:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
            return x

    with torch.autocast("cpu", torch.bfloat16, enabled=settings.pop("autocast", False)):
        y = run(x)
    module.zero_grad()
    x.grad = None
    y.float().square().sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {"y": y.detach(), "dx": x.grad} | found


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 5, 16, requires_grad=True)


def test_a_group_computes_what_its_layers_do(x, grouped):
    together, apart = (gradients(make(dropout=0.0).module, x) for make in (grouped, alone))
    assert together.keys() == apart.keys()
    assert len(together) > 10
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_repeats_the_masks_of_a_group(x, grouped, use_reentrant, autocast):
    module = grouped(dropout=0.4).module
    plain = gradients(module, x, autocast=autocast)
    again = gradients(module, x, autocast=autocast, checkpoint=True, use_reentrant=use_reentrant)
    assert plain.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


@pytest.mark.parametrize("change", ["other tensor", "changed in place", "evaluation", "inference"])
def test_a_layer_that_meets_something_else_computes_alone(x, grouped, change):
    module, expected = (make(layers=1, dropout=0.0).module[0] for make in (grouped, alone))
    first = x.detach().clone()
    second = first + 1 if change == "other tensor" else first

    def both(part: nn.Module) -> list[torch.Tensor]:
        part.train()
        q = part.q(first)
        if change == "changed in place":
            first.mul_(2)
        if change == "evaluation":
            part.eval()
        with torch.inference_mode(change == "inference"):
            return [q, part.k(second * 1 if change == "inference" else second), part.v(second), part.q(second)]

    ours = both(module)
    first.copy_(x.detach())
    torch.testing.assert_close(ours, both(expected))


def test_a_group_shares_its_mask_and_without_it_each_layer_has_its_own(grouped):
    x = torch.ones(1, 64, 16)
    for make, equal in ((grouped, True), (alone, False)):
        part = make(layers=1, dropout=0.5).module[0]
        with torch.no_grad():
            for layer in (part.k, part.v):
                layer.weight.zero_(), layer.bias.zero_()
                layer.lora_a.copy_(part.k.lora_a)
                layer.lora_b.copy_(part.k.lora_b)
        part.q(x), (k := part.k(x)), (v := part.v(x))
        assert torch.equal(k, v) == equal


@pytest.mark.slow
def test_a_traced_model_computes_the_same(x, grouped):
    torch.compiler.reset()
    module = grouped(dropout=0.0, layers=1).module
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x), module(x))
