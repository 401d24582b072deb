"""Prefix tuning: trained keys and values act as those of tokens that came before."""

from __future__ import annotations

import copy

import pytest
import torch
from expected import raises
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM
from virtual_token_models import TEXT, build, inputs, logits, tokens, with_

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.model import trainable
from ftengine.training.modes import require_gradient_checkpointing
from ftengine_builtins.strategies.prefix import Prefix


def start_of(loaded: LoadedModel) -> torch.Tensor:
    return next(p for key, p in trainable(loaded.module).items() if key.endswith("prefix.embeddings"))


@pytest.mark.parametrize("name", ["bert", "roberta", "bert-tokens"])
def test_every_layer_of_an_encoder_attends_to_the_prefix(name):
    loaded, ids = with_("prefix", name), tokens()
    stack = loaded.module.base_model
    before = logits(loaded, **inputs(loaded, ids))
    gradient = torch.autograd.grad(stack(**inputs(loaded, ids)).last_hidden_state.square().sum(), start_of(loaded))[0]
    by_layer = gradient.view(5, 4, -1).abs().amax(dim=(0, 2))  # keys and values of two layers
    assert (by_layer > 0).all()
    with torch.no_grad():
        start_of(loaded).add_(1)
    assert not torch.allclose(logits(loaded, **inputs(loaded, ids)), before, atol=1e-4)


def test_an_encoders_attention_is_over_prefix_and_text():
    loaded, ids = with_("prefix", "bert", virtual_tokens=3), tokens(1, 4)
    layer = loaded.module.bert.encoder.layer[0].attention.self
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(states=args[0], output=output[0]))
    logits(loaded, **inputs(loaded, ids))

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.view(1, -1, 4, 8).transpose(1, 2)

    query, key, value = (heads(linear(seen["states"])) for linear in (layer.query, layer.key, layer.value))
    keys, values = start_of(loaded).view(3, 4, 4, 8)[:, :2].permute(1, 2, 0, 3)
    key, value = (torch.cat([own[None], text], dim=2) for own, text in ((keys, key), (values, value)))
    expected = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=-1) @ value
    torch.testing.assert_close(seen["output"], expected.transpose(1, 2).reshape(1, 4, 32))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_autocast_leaves_weights_in_float32(name):
    loaded = with_("prefix", name, projection=8)
    with torch.autocast("cpu", torch.bfloat16):
        loaded.module(**inputs(loaded, tokens())).logits.float().square().sum().backward()
    gradients = [parameter.grad for key, parameter in trainable(loaded.module).items() if ".prefix." in key]
    assert all(gradient.dtype is torch.float32 and gradient.abs().max() > 0 for gradient in gradients)


def test_experts_that_cannot_run_without_weights_are_counted_from_the_config():
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=16, num_local_experts=2,
    )  # fmt: skip
    for device in ("meta", "cpu"):
        with torch.device(device):
            loaded = LoadedModel(MixtralForCausalLM(config), None, "", "causal-lm")
        Prefix(Prefix.Config(virtual_tokens=5)).prepare(loaded)
        assert start_of(loaded).shape == (5, 3 * 2 * 2 * 4)


def test_random_keys_and_values_have_each_their_layers_scale():
    own = start_of(with_("prefix", "gpt2", virtual_tokens=50)).view(50, 4, -1)
    drawn = start_of(with_("prefix", "gpt2", init="random", virtual_tokens=50)).view(50, 4, -1)
    ratio = drawn.std(dim=(0, 2)) / own.std(dim=(0, 2))
    assert ((ratio > 0.8) & (ratio < 1.25)).all()


# What is refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t5", "T5ForConditionalGeneration"),
        ("bart", "BartForConditionalGeneration"),
        ("distilbert", "DistilBertModel"),
        ("modernbert", "ModernBertModel"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_that_a_prefix_does_not_fit_is_refused(name, reason, device):
    with raises(RecipeError, reason, "strategy.name=prompt"):
        Prefix().prepare(build(name, device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_prefix_longer_than_the_attention_is_refused(device):
    config = MistralConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, sliding_window=6,
    )  # fmt: skip
    with torch.device(device):
        module = MistralForCausalLM(config)
    Prefix(Prefix.Config(virtual_tokens=5)).prepare(LoadedModel(copy.deepcopy(module), None, "", "causal-lm"))
    with raises(RecipeError, "virtual_tokens 6", "MistralModel"):
        Prefix(Prefix.Config(virtual_tokens=6)).prepare(LoadedModel(module, None, "", "causal-lm"))


def test_gradient_checkpointing_is_refused_rather_than_losing_the_prefix():
    loaded = with_("prefix", "llama")
    assert not loaded.module.supports_gradient_checkpointing
    with raises(RecipeError, "LlamaForCausalLM"):
        require_gradient_checkpointing(loaded.module)
    with raises(ValueError, "checkpointing"):
        loaded.module.gradient_checkpointing_enable()


@pytest.mark.parametrize("options", [{"init": "vocabulary"}, {"init": "text", "text": TEXT}])
def test_a_projection_starts_at_random(options):
    with raises(RecipeError, "projection is 8", "strategy.init"):
        Prefix.Config(projection=8, **options)
