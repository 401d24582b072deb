"""What prompts and prefixes have in common: they act as tokens that came before, seen by nothing but attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from expected import raises
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, ResNetConfig, ResNetForImageClassification
from virtual_token_models import DECODERS, MODELS, TEXT, answered, build, inputs, logits, ones, padded, tokens, with_

from ftengine.api import LoadedModel
from ftengine.errors import InputError, RecipeError
from ftengine.model import Criterion, trainable
from ftengine.plugins.registry import Registry
from ftengine_builtins.tasks.causal_lm import CausalLM

BOTH = pytest.mark.parametrize("strategy", ["prompt", "prefix"])


def over(prompts, prefixes):
    """Run a test on the models of each strategy."""
    pairs = [("prompt", name) for name in prompts] + [("prefix", name) for name in prefixes]
    return pytest.mark.parametrize(("strategy", "name"), pairs)


def vectors(loaded: LoadedModel) -> nn.Parameter:
    return next(p for key, p in trainable(loaded.module).items() if key.endswith(("prompt_embeddings", ".embeddings")))


@over(MODELS, DECODERS)
def test_what_starts_from_a_text_is_that_text_to_the_model(strategy, name):
    base, ids = build(name), tokens()
    text = torch.tensor(base.processor(TEXT, add_special_tokens=False)["input_ids"])
    tuned = with_(strategy, name, init="text", text=TEXT, virtual_tokens=len(text))
    expected = logits(base, **inputs(base, torch.cat([text.expand(len(ids), -1), ids], dim=1)))
    if base.head in ("causal-lm", "token-classification"):
        expected = expected[:, -ids.shape[1] :]
    torch.testing.assert_close(logits(tuned, **inputs(tuned, ids)), expected)
    assert not torch.allclose(expected, logits(base, **inputs(base, ids)), atol=1e-4)


@over(["gpt2", "llama", "t5", "bart"], ["gpt2", "llama"])
def test_generation_does_not_depend_on_padding(strategy, name):
    loaded = with_(strategy, name)
    # A decoder continues its last position, so it is padded on the left.
    ids, mask = padded(tokens(), 4, "left" if loaded.head == "causal-lm" else "right")
    alone = ids[1][mask[1].bool()][None]
    together, single = answered(loaded.module, ids, mask), answered(loaded.module, alone, ones(alone))
    assert together[0][1] == single[0][0]
    torch.testing.assert_close(together[1][1], single[1][0])


@over(["gpt2", "llama", "t5", "bart"], ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(strategy, name, beams):
    loaded, ids = with_(strategy, name), tokens()
    cached = answered(loaded.module, ids, ones(ids), use_cache=True, num_beams=beams)
    plain = answered(loaded.module, ids, ones(ids), use_cache=False, num_beams=beams)
    assert cached[0] == plain[0]
    torch.testing.assert_close(cached[1], plain[1])
    base = answered(build(name).module, ids, ones(ids), num_beams=beams)
    assert not torch.allclose(cached[1][:, 0], base[1][:, 0], atol=1e-4)


@BOTH
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_loss_of_a_task_is_the_plain_cross_entropy_of_labelled_tokens(strategy, name):
    loaded, ids = with_(strategy, name), tokens()
    labels = ids.clone()
    labels[:, :4], labels[1, -2:] = -100, -100
    total, count = CausalLM().loss(loaded.module, {**inputs(loaded, ids), "labels": labels}, Criterion())
    (gradient,) = torch.autograd.grad(total, vectors(loaded))
    output = loaded.module(**inputs(loaded, ids)).logits
    assert output.shape[1] == ids.shape[1]
    expected = F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert count == (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, vectors(loaded))[0])


@BOTH
def test_there_is_room_for_fewer_tokens_and_the_longest_input_fits(strategy):
    loaded = with_(strategy, "gpt2", virtual_tokens=10)
    assert loaded.max_length == 54
    assert logits(loaded, **inputs(loaded, tokens(1, 54))).shape[1] == 54
    with raises(RecipeError, "virtual_tokens 63", "64 tokens", "1 to 62"):
        with_(strategy, "gpt2", virtual_tokens=63)


@BOTH
def test_models_without_tokens_or_without_keys_are_refused_untouched(strategy):
    images = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    for module, why in (
        (images, "ResNetForImageClassification"),
        (nn.Sequential(nn.Linear(2, 2)), "Sequential"),
        (recurrent, "MambaModel"),
    ):
        before = trainable(module).keys()
        with raises(RecipeError, why):
            Registry().build("strategy", strategy, "strategy").prepare(LoadedModel(module, None, "", "causal-lm"))
        assert trainable(module).keys() == before


@BOTH
def test_a_second_one_and_a_replaced_forward_are_refused(strategy):
    prepare = Registry().build("strategy", strategy, "strategy").prepare
    with raises(RecipeError, "already"):
        prepare(with_(strategy, "gpt2"))
    loaded = build("gpt2")
    loaded.module.transformer.forward = loaded.module.transformer.forward
    with raises(RecipeError, "forward"):
        prepare(loaded)


@BOTH
def test_a_cache_of_fixed_size_is_refused(strategy):
    loaded, ids = with_(strategy, "llama"), tokens()
    with raises(InputError, "cache"):
        loaded.module.generate(input_ids=ids, attention_mask=ones(ids), max_new_tokens=2, cache_implementation="static")
