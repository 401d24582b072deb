"""Prefix tuning: trained keys and values act as those of tokens that came before."""

from __future__ import annotations

import copy

import pytest
import torch
from expected import raises
from transformers import MistralConfig, MistralForCausalLM
from virtual_token_models import build, inputs, logits, tokens, with_

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
