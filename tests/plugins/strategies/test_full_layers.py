"""Full tuning by layers: what is frozen, how fast each layer learns, and when it joins."""

from __future__ import annotations

import copy

import pytest
import torch
from expected import raises
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from ftengine.api import LoadedModel
from ftengine.errors import NoMatch, RecipeError
from ftengine.model import trainable
from ftengine_builtins.strategies.full import Full
from ftengine_builtins.strategies.full_levels import find_levels

SMALL = {"vocab_size": 40}
MODELS = {
    "bert": (
        BertForSequenceClassification,
        BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, **SMALL),
        ("classifier",),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=8, n_head=2, n_layer=3, n_positions=16, **SMALL), ()),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, **SMALL),
        (),
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=3, num_decoder_layers=2, num_heads=2, **SMALL),
        (),
    ),
    "vit": (
        ViTForImageClassification,
        ViTConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, image_size=32),
        ("classifier",),
    ),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(depths=[1, 2, 1], hidden_sizes=[8, 8, 16], embedding_size=8, layer_type="basic"),
        ("classifier.1",),
    ),
}


def build(name: str, device: str = "cpu") -> LoadedModel:
    cls, config, new = MODELS[name]
    torch.manual_seed(0)
    with torch.device(device):
        module: PreTrainedModel = cls(copy.deepcopy(config))
    return LoadedModel(module, None, "memory", "some-head", new_modules=new)


def prepared(name: str, device: str = "cpu", **options) -> tuple[LoadedModel, Full]:
    loaded, strategy = build(name, device), Full(Full.Config(**options))
    strategy.prepare(loaded)
    return loaded, strategy


# Layers


BELOW_AND_ABOVE = {
    "bert": ("bert.embeddings.LayerNorm.weight", "bert.encoder.layer.{}.output.dense.weight", "classifier.weight"),
    "gpt2": ("transformer.wpe.weight", "transformer.h.{}.mlp.c_fc.weight", "transformer.ln_f.weight"),
    "llama": ("model.embed_tokens.weight", "model.layers.{}.mlp.up_proj.weight", "lm_head.weight"),
    "t5": ("shared.weight", "encoder.block.{}.layer.1.DenseReluDense.wi.weight", "decoder.final_layer_norm.weight"),
    "vit": ("vit.embeddings.cls_token", "vit.layers.{}.mlp.fc1.weight", "classifier.bias"),
    "resnet": (
        "resnet.embedder.embedder.convolution.weight",
        "resnet.encoder.stages.{}.layers.0.layer.0.convolution.weight",
        "classifier.1.weight",
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_are_found_from_embeddings_to_head(name, device) -> None:
    levels = find_levels(build(name, device)).of
    lowest, block, top = BELOW_AND_ABOVE[name]
    assert levels[lowest] == 0
    assert [levels[block.format(i)] for i in range(3)] == [1, 2, 3]
    assert levels[top] == 4


@pytest.mark.parametrize("option", [{"layer_decay": 0.9}, {"unfreeze_every": 3}])
def test_a_model_without_layers_is_refused(option) -> None:
    loaded = LoadedModel(nn.ModuleDict({"only": nn.Linear(2, 2)}), None, "memory", "some-head")
    with raises(RecipeError, "ModuleDict"):
        Full(Full.Config(**option)).prepare(loaded)


# Layer-wise learning-rate decay


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_learns_slower_than_the_one_above(name) -> None:
    loaded, strategy = prepared(name, layer_decay=0.5)
    groups = strategy.param_groups(loaded.module, 0.8, 0.1)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(trainable(loaded.module))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    lowest, block, top = (name for name in BELOW_AND_ABOVE[name])
    parameters = dict(loaded.module.named_parameters())
    names = [top, *(block.format(i) for i in (2, 1, 0)), lowest]
    assert [rate[id(parameters[n])] for n in names] == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05])


def test_a_part_learns_at_a_rate_of_its_own() -> None:
    """A pattern names a module with all in it; the first one counts, on top of the layer's."""
    rates = {"layer.2": 10, "encoder": 3}
    loaded, strategy = prepared("bert", layer_decay=0.5, rate_pattern=rates)
    rate = {id(p): group["lr"] for group in strategy.param_groups(loaded.module, 0.8, 0.1) for p in group["params"]}
    for name, parameter in loaded.module.named_parameters():
        times = 10 if ".layer.2." in name else 3 if ".encoder." in name else 1
        level = 4 if name.startswith("classifier") else int(name.split("layer.")[1][0]) + 1 if ".layer." in name else 0
        if not name.startswith("bert.pooler"):
            assert rate[id(parameter)] == pytest.approx(0.8 * times * 0.5 ** (4 - level)), name
    for patterns, fact in (({"encodr": 2}, "'encoder'"), ({"encoder": 2, "layer.2": 3}, "'encoder'")):
        with raises(NoMatch, "rate_pattern", next(reversed(patterns)), fact):
            prepared("bert", rate_pattern=patterns)


# Gradual unfreezing


def schedule(loaded, strategy, steps: int, per_epoch: int = 4) -> list[frozenset[str]]:
    """Return for each step the names that rest."""
    names = {p: name for name, p in loaded.module.named_parameters()}
    return [
        frozenset(names[p] for p in strategy.frozen_parameters(loaded.module, step, steps, per_epoch))
        for step in range(steps)
    ]


@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_a_new_head_trains_alone_before_the_layers_join_from_the_top(name) -> None:
    loaded, strategy = prepared(name, unfreeze_every=2)
    lowest, block, top = BELOW_AND_ABOVE[name]
    joined = schedule(loaded, strategy, steps=12)
    order = [block.format(2), block.format(1), block.format(0), lowest]
    assert all(top not in rest for rest in joined)
    for position, name in enumerate(order):
        assert [step for step in range(12) if name not in joined[step]] == list(range(2 * (position + 1), 12))


def test_a_layer_joins_once_an_epoch() -> None:
    loaded, strategy = prepared("gpt2", unfreeze_every="epoch")
    joined = schedule(loaded, strategy, steps=20, per_epoch=5)
    assert [sum(f"transformer.h.{i}.ln_1.weight" not in rest for rest in joined) for i in range(3)] == [10, 15, 20]


def test_frozen_layers_take_no_turn() -> None:
    loaded, strategy = prepared("llama", unfreeze_every=1, freeze=["layers.1", "embed_tokens"])
    joined = schedule(loaded, strategy, steps=4)
    assert not any(".layers.1." in name for rest in joined for name in rest)
    assert [any(".layers.0." in name for name in rest) for rest in joined] == [True, False, False, False]


# Freezing


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_frozen_layers_do_not_train_and_all_others_do(device) -> None:
    loaded, strategy = prepared("bert", device, freeze=["embeddings", "layer.0"])
    frozen = {name for name, p in loaded.module.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in loaded.module.named_parameters()
        if name.startswith(("bert.embeddings.", "bert.encoder.layer.0."))
    }
    assert strategy.matches() == {
        "freeze embeddings": ["bert.embeddings"],
        "freeze layer.0": ["bert.encoder.layer.0"],
    }


def test_a_new_head_trains_though_everything_around_it_is_frozen() -> None:
    from ftengine.engine.prepared_data import apply_strategy

    loaded = build("resnet")
    apply_strategy(Full(Full.Config(freeze=["resnet"])), loaded)
    assert set(trainable(loaded.module)) == {"classifier.1.weight", "classifier.1.bias"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["embedding"], "'embeddings'"),
        (["embeddings", "layer.9"], "'layer.9'"),
        ("embeddings", "whole path"),
        (["classifier"], "has to train"),
        (["dropout"], "has no parameters"),
    ],
)
def test_a_pattern_that_freezes_nothing_is_an_error(patterns, message) -> None:
    with raises(NoMatch, message):
        prepared("bert", freeze=patterns)


def test_a_tied_head_is_said_to_be_tied_and_to_what() -> None:
    with raises(NoMatch, "'lm_head.weight'", "'transformer.wte.weight'"):
        prepared("gpt2", freeze=["lm_head"])


def test_freezing_everything_is_an_error() -> None:
    with raises(RecipeError, "nothing to train"):
        prepared("gpt2", freeze=".*")
