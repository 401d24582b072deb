"""Prompt tuning: virtual tokens act as tokens do, and heads, losses and generation see the real ones alone."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import LlamaForCausalLM
from virtual_token_models import TEXT, answered, build, inputs, logits, ones, tokens, with_

from ftengine.api import LoadedModel
from ftengine.model import trainable
from ftengine_builtins.strategies.prompt import Prompt

LANGUAGE = ["gpt2", "llama", "t5", "bart"]


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


# How virtual tokens start


def test_a_text_is_repeated_or_cut_to_the_number_of_virtual_tokens():
    base = build("gpt2")
    text = text_ids(base)
    table = base.module.get_input_embeddings().weight
    for count in (2, len(text), 2 * len(text) + 1):
        vectors = trainable(with_("prompt", "gpt2", init="text", text=TEXT, virtual_tokens=count).module).popitem()[1]
        expected = text.repeat(3)[:count]
        assert torch.equal(vectors, table[expected])


# What is refused, and room


def test_virtual_tokens_have_their_own_rate():
    loaded = with_("prompt", "bert")
    groups = Prompt(Prompt.Config(lr_ratio=10)).param_groups(loaded.module, 0.5, 0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {key: 5.0 if key.endswith("prompt_embeddings") else 0.5 for key in trainable(loaded.module)}
    assert {key: rates[id(parameter)] for key, parameter in trainable(loaded.module).items()} == expected
