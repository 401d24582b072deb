"""LoRA computes what PEFT computes, and leaves what is frozen alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lora_models import DoublingLinear, PackedLinear
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ftengine.api import LoadedModel
from ftengine.model import trainable
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.lora_layers import lora_layers


def prepared(loaded: LoadedModel, **options) -> LoRA:
    torch.manual_seed(0)
    strategy = LoRA(LoRAConfig(**{"dropout": 0.0, **options}))
    strategy.prepare(loaded)
    return strategy


def as_peft(base: nn.Module, ours: nn.Module, head: str) -> nn.Module:
    """Wrap a copy of the base with PEFT, holding the same A, B and head as ours."""
    layers = lora_layers(ours)
    task = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}[head]
    config = PeftConfig(r=8, lora_alpha=16, target_modules=list(layers), task_type=task)
    wrapped = get_peft_model(copy.deepcopy(base), config)
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in trainable(wrapped).items():
            parameter.copy_(own[ours_name(name)])
    return wrapped


def ours_name(peft_name: str) -> str:
    return (
        peft_name.removeprefix("base_model.model.")
        .replace(".lora_A.default.weight", ".lora_a")
        .replace(".lora_B.default.weight", ".lora_b")
        .replace(".modules_to_save.default", "")
    )


def without_dropout(module: nn.Module) -> nn.Module:
    """Switch off the architecture's own dropout, which differs from run to run."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def both_gradients(loaded, numbers, base, *, autocast: bool = False, checkpointing: bool = False):
    """Return gradients by name: ours, PEFT's, and PEFT's in float64."""
    peft = as_peft(base, loaded.module, loaded.head)
    exact = numbers.gradients(copy.deepcopy(peft).double(), base)
    for module in (loaded.module, peft):
        without_dropout(module).train()
        if checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = numbers.gradients(loaded.module), numbers.gradients(peft, base)
    return ours, renamed(theirs), renamed(exact)


def renamed(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {ours_name(name): gradient for name, gradient in gradients.items()}


@pytest.fixture
def base(loaded) -> nn.Module:
    """The model as it was before LoRA."""
    return without_dropout(copy.deepcopy(loaded.module))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_in_float32_equal_pefts(loaded, base, numbers, checkpointing) -> None:
    prepared(loaded)
    numbers.shake(loaded.module)
    numbers.assert_as_exact(*both_gradients(loaded, numbers, base, checkpointing=checkpointing), torch.float32)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_under_bfloat16_autocast_are_as_good_as_pefts(loaded, base, numbers, checkpointing) -> None:
    prepared(loaded)
    numbers.shake(loaded.module)
    gradients = both_gradients(loaded, numbers, base, autocast=True, checkpointing=checkpointing)
    numbers.assert_as_exact(*gradients, torch.bfloat16)


def test_gradients_in_float64_equal_pefts(loaded, base, numbers, doubled) -> None:
    prepared(loaded)
    numbers.shake(loaded.module)
    peft = as_peft(base, loaded.module, loaded.head).eval()
    single, theirs = renamed(numbers.gradients(peft, base)), renamed(numbers.gradients(peft.double(), base))
    ours = numbers.gradients(doubled(loaded.module).eval())
    # No wider dtype is at hand to say what is exact, but rounding errors scale with the unit roundoff: what
    # float32 loses, times 2⁻²⁹, is what PEFT's float64 loses, and ours may lose twice that.
    shrink = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    lost = {name: theirs[name] + shrink * (single[name] - theirs[name]) for name in theirs}
    numbers.assert_as_exact(ours, lost, theirs, torch.float64)


def test_checkpointing_replays_the_dropout_mask(loaded, numbers) -> None:
    prepared(loaded, dropout=0.3)
    numbers.shake(loaded.module)
    without_dropout(loaded.module).train()
    torch.manual_seed(3)
    plain = numbers.gradients(loaded.module)
    loaded.module.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(3)
    replayed = numbers.gradients(loaded.module)
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)


def test_only_lora_and_the_new_head_train(loaded) -> None:
    prepared(loaded)
    names = trainable(loaded.module)
    assert all(name.endswith((".lora_a", ".lora_b")) or name.startswith(loaded.new_modules) for name in names)
    assert any(name.startswith("classifier.") for name in names) == bool(loaded.new_modules)


@pytest.mark.parametrize("rslora", [False, True])
def test_scale_is_alpha_over_rank_or_its_root(rslora: bool) -> None:
    layer = nn.Linear(6, 5)
    loaded = LoadedModel(nn.Sequential(layer), None, "memory", "causal-lm")
    prepared(loaded, rank=4, alpha=3, rslora=rslora)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 6)
    update = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
    expected = (x @ layer.lora_a.T @ layer.lora_b.T) * (3 / (math.sqrt(4) if rslora else 4))
    torch.testing.assert_close(update, expected)
    assert layer.lora_scale == 3 / (math.sqrt(4) if rslora else 4)


@pytest.mark.parametrize("kind", ["packed", "subclass"])
def test_any_layer_with_its_own_forward_keeps_it(kind: str) -> None:
    torch.manual_seed(0)
    layer = PackedLinear(6, 5) if kind == "packed" else DoublingLinear(6, 5)
    x = torch.randn(7, 6, requires_grad=True)
    frozen = layer(x)
    prepared(LoadedModel(nn.Sequential(layer), None, "memory", "causal-lm"), rank=2, alpha=2)
    assert torch.equal(layer(x), frozen)
    nn.init.normal_(layer.lora_b)
    torch.testing.assert_close(layer(x), frozen + x @ layer.lora_a.T @ layer.lora_b.T)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.lora_a.grad.abs().sum() > 0
    assert layer.lora_b.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_compiled_model_computes_the_same() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), Conv1D(4, 5), PackedLinear(4, 3))
    prepared(LoadedModel(module, None, "memory", "causal-lm"))
    for layer in module:
        nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 6)
    results = []
    for run in (module, torch.compile(module, backend="aot_eager")):
        module.zero_grad()
        y = run(x)
        y.sum().backward()
        results.append([y, *(parameter.grad for parameter in trainable(module).values())])
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results, strict=True))
