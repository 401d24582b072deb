"""Merging folds the update into the base and leaves a plain model."""

from __future__ import annotations

import copy

import pytest
import torch
from expected import raises
from lora_models import DoublingLinear, PackedLinear
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ftengine.api import LoadedModel
from ftengine.errors import NotMergeable, RunError
from ftengine_builtins.strategies.full import Full
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.lora_layers import lora_layers


def tuned(loaded: LoadedModel, numbers, **options) -> LoRA:
    strategy = LoRA(LoRAConfig(**options))
    strategy.prepare(loaded)
    numbers.shake(loaded.module)
    return strategy


@torch.no_grad()
def exactly_merged(base: nn.Module, tuned: nn.Module) -> nn.Module:
    """Return the base in float64 with scale · BA added, and the tuned head."""
    exact = copy.deepcopy(base).double()
    layers = lora_layers(tuned)
    own = dict(tuned.named_parameters())
    for name, parameter in exact.named_parameters():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None:
            parameter.copy_(own[name])
            continue
        update = layer.lora_scale * (layer.lora_b.double() @ layer.lora_a.double())
        parameter += update if update.shape == parameter.shape and not hasattr(layer, "nf") else update.T
    return exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["llama", "gpt2", "bert"])
def test_a_merged_model_is_as_good_as_the_exact_merge_rounded(
    request, load, numbers, tmp_path, model: str, dtype
) -> None:
    """Saved and opened with transformers alone; the yardstick is the float64 merge, rounded to the dtype once."""
    folder = request.getfixturevalue(f"{model}_folder")
    loaded = load(folder, "sequence-classification" if model == "bert" else "causal-lm", dtype)
    base = copy.deepcopy(loaded.module)
    strategy = tuned(loaded, numbers)
    exact = exactly_merged(base, loaded.module)
    rounded = copy.deepcopy(exact).to(dtype)
    truth = numbers.logits(exact)

    strategy.merge(loaded)
    Full().save(loaded, tmp_path)
    auto = AutoModelForSequenceClassification if model == "bert" else AutoModelForCausalLM
    merged, info = auto.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    numbers.assert_as_exact(numbers.logits(merged), numbers.logits(rounded), truth, dtype)
    assert (numbers.logits(base).double() - truth).norm() > 10 * (numbers.logits(rounded).double() - truth).norm()


def test_merging_keeps_ties(llama_folder, load, numbers) -> None:
    loaded = load(llama_folder)
    tuned(loaded, numbers).merge(loaded)
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight


def test_a_tied_head_may_train_but_not_merge(llama_folder, load, numbers) -> None:
    loaded = load(llama_folder)
    base = numbers.logits(loaded.module)
    strategy = tuned(loaded, numbers, targets=["lm_head", "q_proj"])
    assert not torch.equal(numbers.logits(loaded.module), base)
    before = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    with raises(NotMergeable, "lm_head.weight", "model.embed_tokens.weight"):
        strategy.merge(loaded)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.module.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (PackedLinear(4, 4), "int8"),
        (DoublingLinear(4, 4), "DoublingLinear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "ParametrizedLinear"),
    ],
    ids=["packed", "own-forward", "parametrized"],
)
def test_only_plain_float_weights_merge_and_nothing_is_half_merged(numbers, layer: nn.Module, what: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), layer)
    loaded = LoadedModel(module, None, "memory", "causal-lm")
    strategy = tuned(loaded, numbers, targets="[01]")
    before = module[0].weight.clone()
    with raises(NotMergeable, what, "merge_and_unload"):
        strategy.merge(loaded)
    assert torch.equal(module[0].weight, before)
    assert len(lora_layers(module)) == 2


def test_merging_a_model_without_lora_is_an_error(llama_folder, load) -> None:
    with raises(RunError, "LoRA"):
        LoRA().merge(load(llama_folder))
