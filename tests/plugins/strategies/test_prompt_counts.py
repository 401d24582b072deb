"""Parameters of prompts as published: Lester et al. 2021 (arXiv:2104.08691), table 4; models built without weights."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from ftengine.api import LoadedModel
from ftengine.model import count
from ftengine_builtins.strategies.prefix import Prefix
from ftengine_builtins.strategies.prompt import Prompt

VOCABULARY = 32_128

# T5 1.1, which the paper tunes: d_model, d_ff, layers, heads (of 64 each).
SIZES = {
    "small": (512, 1024, 8, 6),
    "xxl": (4096, 10240, 24, 64),
}
# Size -> (total parameters with a prompt of length 1, trainable ones by prompt length). The table prints 10,420 for
# small at length 20, against 512 a token in its other rows; that cell is left out.
TABLE_4 = {
    "small": (76_961_664, {1: 512, 5: 2_560, 50: 25_600, 100: 51_200, 150: 76_800}),
    "xxl": (11_135_336_448, {1: 4_096, 5: 20_480, 20: 81_920, 50: 204_800, 100: 409_600, 150: 614_400}),
}


def t5(size: str) -> LoadedModel:
    width, inner, layers, heads = SIZES[size]
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=64,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        return LoadedModel(T5ForConditionalGeneration(config), None, size, "seq2seq-lm")


@pytest.mark.parametrize("size", TABLE_4)
def test_prompts_of_t5_have_the_published_numbers_of_parameters(size):
    total, by_length = TABLE_4[size]
    trained = {}
    for length in by_length:
        loaded = t5(size)
        Prompt(Prompt.Config(virtual_tokens=length)).prepare(loaded)
        trained[length], whole = count(loaded.module)
        # The paper's models have an output table of their own; transformers shares it with the input's.
        assert whole + VOCABULARY * SIZES[size][0] == total + (length - 1) * SIZES[size][0]
    assert trained == by_length


def test_a_prefix_of_gpt2_large_is_two_vectors_a_layer():
    # PEFT's documentation counts 1,843,200 for 20 virtual tokens: 36 layers, keys and values of 1280.
    with torch.device("meta"):
        module = GPT2LMHeadModel(GPT2Config(n_embd=1280, n_layer=36, n_head=20))
    Prefix(Prefix.Config(virtual_tokens=20)).prepare(LoadedModel(module, None, "gpt2-large", "causal-lm"))
    assert count(module)[0] == 1_843_200
