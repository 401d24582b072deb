"""Prompt tuning: virtual tokens act as tokens do, and heads, losses and generation see the real ones alone."""

from __future__ import annotations

import inspect

import pytest
import torch
from expected import raises
from transformers import LlamaForCausalLM
from virtual_token_models import MODELS, TEXT, answered, build, inputs, logits, ones, tokens, with_

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.model import trainable
from ftengine_builtins.strategies.prompt import Prompt

LANGUAGE = ["gpt2", "llama", "t5", "bart"]
CLASSIFIERS = [name for name, (*_, head) in MODELS.items() if head == "sequence-classification"]


def text_ids(loaded: LoadedModel) -> torch.Tensor:
    return torch.tensor(loaded.processor(TEXT, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", LANGUAGE)
def test_beams_search_with_a_prompt(name):
    ids, text = tokens(), text_ids(build(name))
    tuned = with_("prompt", name, init="text", text=TEXT, virtual_tokens=len(text))
    whole = torch.cat([text.expand(len(ids), -1), ids], dim=1)
    assert (
        answered(tuned.module, ids, ones(ids), num_beams=3)[0]
        == answered(build(name).module, whole, ones(whole), num_beams=3)[0]
    )


CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
"""What transformers calls it."""


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_of_one_pass_are_those_of_token_after_token(name):
    loaded, ids = with_("prompt", name), tokens()
    whole = logits(loaded, **inputs(loaded, ids))
    cache, pieces = None, []
    for part in ids.split([4, 1, 1, 3], dim=1):
        seen = sum(piece.shape[1] for piece in pieces) + part.shape[1]
        mask = torch.ones(len(ids), seen, dtype=torch.long)
        with torch.no_grad():
            output = loaded.module(input_ids=part, attention_mask=mask, **{CACHE: cache}, use_cache=True)
        cache = getattr(output, CACHE)
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_embeddings_may_be_given_instead_of_tokens(name):
    loaded, ids = with_("prompt", name), tokens()
    given = inputs(loaded, ids)
    expected = logits(loaded, **given)
    del given["input_ids"]
    embeddings = loaded.module.get_input_embeddings()(ids)
    torch.testing.assert_close(logits(loaded, inputs_embeds=embeddings, **given), expected)


def test_token_types_and_positions_may_be_given():
    loaded, ids = with_("prompt", "bert"), tokens()
    given = inputs(loaded, ids)
    expected = logits(loaded, **given)
    given |= {"token_type_ids": torch.zeros_like(ids), "position_ids": torch.arange(ids.shape[1])[None]}
    torch.testing.assert_close(logits(loaded, **given), expected)
    assert not torch.equal(logits(loaded, **given | {"token_type_ids": ones(ids)}), expected)


def test_hidden_states_are_those_of_the_real_tokens():
    loaded, ids = with_("prompt", "gpt2"), tokens()
    states = loaded.module(**inputs(loaded, ids), output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [ids.shape[1]] * 3


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert"])
def test_gradient_checkpointing_changes_no_gradient(name):
    dropouts = {
        "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "t5": ("dropout_rate",),
    }
    loaded = build(name, **dict.fromkeys(dropouts.get(name, ()), 0.0))
    Prompt().prepare(loaded)
    loaded.module.train()
    given, gradients = inputs(loaded, tokens()), []
    for checkpointed in (False, True):
        if checkpointed:
            loaded.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loaded.module.zero_grad()
        loaded.module(**given).logits.square().sum().backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in trainable(loaded.module).items()})
    torch.testing.assert_close(gradients[0], gradients[1])


# How virtual tokens start


def test_a_text_is_repeated_or_cut_to_the_number_of_virtual_tokens():
    base = build("gpt2")
    text = text_ids(base)
    table = base.module.get_input_embeddings().weight
    for count in (2, len(text), 2 * len(text) + 1):
        vectors = trainable(with_("prompt", "gpt2", init="text", text=TEXT, virtual_tokens=count).module).popitem()[1]
        expected = text.repeat(3)[:count]
        assert torch.equal(vectors, table[expected])


def test_vocabulary_draws_ordinary_tokens():
    loaded = with_("prompt", "llama", virtual_tokens=40)
    vectors = trainable(loaded.module).popitem()[1]
    table = loaded.module.get_input_embeddings().weight
    drawn = [int((table == vector).all(dim=1).nonzero()[0, 0]) for vector in vectors]
    assert len(set(drawn)) > 20
    assert not set(drawn) & set(loaded.processor.all_special_ids)


def test_random_vectors_have_the_scale_of_the_embeddings():
    loaded = with_("prompt", "gpt2", init="random", virtual_tokens=50)
    vectors = trainable(loaded.module).popitem()[1]
    scale = loaded.module.get_input_embeddings().weight.std()
    assert 0.9 < (vectors.std() / scale).item() < 1.1


@pytest.mark.parametrize("options", [{"init": "text"}, {"text": "words"}, {"init": "random", "text": "words"}])
def test_a_text_and_its_init_go_together(options):
    with raises(RecipeError, "init: text"):
        Prompt.Config(**options)


# What is refused, and room


def test_virtual_tokens_have_their_own_rate():
    loaded = with_("prompt", "bert")
    groups = Prompt(Prompt.Config(lr_ratio=10)).param_groups(loaded.module, 0.5, 0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {key: 5.0 if key.endswith("prompt_embeddings") else 0.5 for key in trainable(loaded.module)}
    assert {key: rates[id(parameter)] for key, parameter in trainable(loaded.module).items()} == expected
