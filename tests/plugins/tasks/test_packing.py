"""Examples in one row: as if each stood alone, or refused."""

import pytest
import torch
from test_token_loss import build, gradients, make_batch, plain
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM

from ftengine.api import Criterion
from ftengine.errors import RecipeError
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig

SMALL = {"vocab_size": 101, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
OPT = {**SMALL, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}


def loss(model, batch):
    return CausalLM(CausalLMConfig(packing=True)).loss(model, batch, Criterion())


class Own(nn.Module):
    """A model without positions."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(101, 8), nn.Linear(8, 101)

    def forward(self, input_ids, attention_mask):
        return self.head(self.table(input_ids))


def test_loss_and_gradients_are_those_of_padded_examples():
    for model in (build(), GPT2LMHeadModel(GPT2Config(**GPT2)).double()):
        batch = make_batch()
        batch["labels"][:, 0] = batch["input_ids"][:, 0]  # of all tokens: no example predicts the next one's first
        expected = plain(model, batch)
        found, tokens = loss(model, batch)
        assert tokens == (batch["labels"][:, 1:] != -100).sum()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        wanted = gradients(model, expected)
        for name, gradient in gradients(model, loss(model, batch)[0]).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12)


def test_models_that_do_not_keep_examples_apart_are_refused():
    torch.manual_seed(0)
    sequential = MambaForCausalLM(MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=4))
    for model in (OPTForCausalLM(OPTConfig(**OPT, num_attention_heads=4)), sequential, Own()):
        with pytest.raises(RecipeError, match=r"packing is true, and .* computes other outputs for examples"):
            loss(model, make_batch())
