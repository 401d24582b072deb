"""Single layers may have ranks and alphas of their own, B a learning rate of its own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from expected import raises
from lora_models import opened_by_peft, prepared
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn

from ftengine.errors import NoMatch
from ftengine.model import trainable
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.lora_layers import lora_layers

PATTERNS = [
    ({"q_proj": 2}, {}),
    ({"model.layers.1.self_attn.q_proj": 2, "q_proj": 3}, {"q_proj": 5}),
    ({"layers.1.self_attn.q_proj": 3, "(q|v)_proj": 2}, {"layers.0.self_attn.(q|v)_proj": 2.5}),
    ({r"^model\.layers\.0\..*": 1}, {r"^model\.layers\.0\..*": 1, "v_proj": 7}),
]


@pytest.mark.parametrize(("ranks", "alphas"), PATTERNS)
@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_mean_what_they_mean_in_peft(llama_folder, load, ranks, alphas, rslora: bool) -> None:
    loaded = load(llama_folder)
    config = PeftConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=rslora)
    config.rank_pattern, config.alpha_pattern = ranks, alphas
    peft = get_peft_model(copy.deepcopy(loaded.module), config).base_model.model
    prepared(loaded, targets=["q_proj", "v_proj"], rank_pattern=ranks, alpha_pattern=alphas, rslora=rslora)
    for path, layer in lora_layers(loaded.module).items():
        theirs = peft.get_submodule(path)
        assert layer.lora_a.shape[0] == theirs.r["default"]
        assert layer.lora_scale == pytest.approx(theirs.scaling["default"])


@pytest.mark.parametrize(("ranks", "alphas"), PATTERNS)
def test_peft_loads_an_adapter_with_patterns(llama_folder, load, numbers, tmp_path, doubled, ranks, alphas) -> None:
    loaded = load(llama_folder)
    base = copy.deepcopy(loaded.module)
    strategy = prepared(loaded, targets=["q_proj", "v_proj"], rank_pattern=ranks, alpha_pattern=alphas)
    numbers.shake(loaded.module)
    strategy.save(loaded, tmp_path)
    assert list(json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]) == list(ranks)
    peft = opened_by_peft(base, tmp_path)
    exact = numbers.logits(doubled(peft), base)
    numbers.assert_as_exact(numbers.logits(loaded.module), numbers.logits(peft, base), exact, torch.float32)

    again = load(llama_folder)
    assert prepared(again, start_from=str(tmp_path)).config.rank_pattern == ranks
    assert torch.equal(numbers.logits(again.module), numbers.logits(loaded.module))


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_no_adapted_layer_is_an_error(llama_folder, load, option: str) -> None:
    loaded = load(llama_folder)
    with raises(NoMatch, option, "'k_proj'"):
        prepared(loaded, targets=["q_proj"], **{option: {"q_proj": 4, "k_proj": 4}})
    assert not lora_layers(loaded.module)


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_behind_a_wider_one_is_an_error(llama_folder, load, option: str) -> None:
    loaded = load(llama_folder)
    with raises(NoMatch, option, "'layers.0.self_attn.q_proj'", "'q_proj'"):
        prepared(loaded, targets=["q_proj"], **{option: {"q_proj": 2, "layers.0.self_attn.q_proj": 16}})
    assert not lora_layers(loaded.module)


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"q_proj": 2.5}},
        {"rank_pattern": {"(": 2}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": -1}},
        {"alpha_pattern": {"": 1}},
        {"lr_ratio": 0},
        {"rate_pattern": {"q_proj": 0}},
        {"rate_pattern": {"(": 2}},
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict) -> None:
    with raises(ValueError, next(iter(options))):
        LoRAConfig(**options)


def rates(strategy: LoRA, module: nn.Module) -> dict[str, tuple[float, float]]:
    """Return (learning rate, weight decay) by parameter name."""
    groups = strategy.param_groups(module, 1e-3, 0.1)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(trainable(module))
    return {name: found[id(p)] for name, p in trainable(module).items()}


def test_b_learns_at_a_rate_of_its_own(bert_folder, load) -> None:
    loaded = load(bert_folder, "sequence-classification")
    strategy = prepared(loaded, lr_ratio=16, dora=True)
    for name, (rate, decay) in rates(strategy, loaded.module).items():
        assert rate == (16e-3 if name.endswith("lora_b") else 1e-3), name
        assert decay == (0.0 if name.endswith(("magnitude", "bias")) else 0.1), name


def test_a_layer_learns_at_a_rate_of_its_own(llama_folder, load) -> None:
    """By PEFT's names of layers, or the module that they are in; LoRA+'s ratio comes on top."""
    loaded = load(llama_folder)
    strategy = prepared(loaded, rate_pattern={"layers.0.self_attn": 5, "q_proj": 2}, lr_ratio=4)
    for name, (rate, _) in rates(strategy, loaded.module).items():
        times = 5 if "layers.0.self_attn" in name else 2 if "q_proj" in name else 1
        assert rate == pytest.approx(1e-3 * times * (4 if name.endswith("lora_b") else 1)), name
    with raises(NoMatch, "rate_pattern", "'embed_tokens'"):
        prepared(load(llama_folder), rate_pattern={"embed_tokens": 2})
