"""Examples in one row: as if each stood alone, or refused."""

import pytest
import torch
from test_token_loss import build, gradients, make_batch, plain
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from ftengine.errors import RecipeError
from ftengine.model import Criterion
from ftengine.model.packing import _require_apart
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


HYBRID = {**SMALL, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "num_key_value_heads": 2}
LEAKING = {
    "OPT": lambda: OPTForCausalLM(OPTConfig(**OPT, num_attention_heads=4)),
    "BLOOM": lambda: BloomForCausalLM(BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4)),
    "Mamba": lambda: MambaForCausalLM(MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=4)),
    "LFM2": lambda: Lfm2ForCausalLM(
        Lfm2Config(**HYBRID, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    ),
    "Falcon-H1": lambda: FalconH1ForCausalLM(FalconH1Config(**HYBRID, **STATES)),
    "a module": Own,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEAKING)
def test_models_that_do_not_keep_examples_apart_are_refused_in_every_dtype(name, dtype):
    torch.manual_seed(0)
    model = LEAKING[name]().to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16), pytest.raises(RecipeError):
        loss(model, make_batch())


class Leaking(LlamaForCausalLM):
    """A row's first token has a share of every state behind it."""

    share = 0.0

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, *args, **kwargs):
        def leak(module, args):
            states = args[0].clone()
            states[:, 64:] += self.share * states[:, :1]
            return (states,)

        with self.model.norm.register_forward_pre_hook(leak):
            return super().forward(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_smallest_leak_that_is_let_through_is_that_of_the_documentation(dtype):
    model = build(Leaking, dtype=dtype)
    for share, packs in ((5e-6, True), (5e-5, False)):
        model.share, found = share, []
        try:
            loss(model, make_batch())
            found.append(True)
        except RecipeError:
            found.append(False)
        assert found == [packs]


def test_what_a_strategy_adds_is_asked_although_it_starts_at_zero():
    class Reader(nn.Module):
        """A share of the row's first state, times a matrix of zeros."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(32, 32))

        def forward(self, states):
            return states + states[:, :1] @ self.weight.to(states.dtype)

    model = build(dtype=torch.float32).requires_grad_(False)
    model.model.norm = nn.Sequential(model.model.norm, Reader())
    with pytest.raises(RecipeError):
        loss(model, make_batch())
    assert not model.model.norm[1].weight.any()


@pytest.mark.parametrize(
    ("make", "packs"),
    [
        (lambda: build(dtype=torch.float32), True),
        (lambda: GPTBigCodeForCausalLM(GPTBigCodeConfig(**GPT2)), False),  # keeps examples apart by its mask alone
    ],
)
def test_flash_attention_packs_only_where_positions_reach_it(make, packs):
    model = make()
    loss(model, make_batch())
    model = make()
    real, config = model.set_attn_implementation, model.config
    kept = lambda kind: setattr(config, "_attn_implementation", kind)  # noqa: E731
    model.set_attn_implementation = lambda kind: kept(kind) if kind == "flash_attention_2" else real(kind)
    kept("flash_attention_2")
    found = []
    try:
        _require_apart(model, make_batch())
        found.append(True)
    except RecipeError as error:
        found.append("where packed examples begin" not in str(error) and str(error))
    assert found == [packs]
    assert config._attn_implementation == "flash_attention_2"
