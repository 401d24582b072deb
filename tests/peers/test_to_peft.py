"""What ftengine's strategies write, whatever the options, PEFT opens with equal outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from opens_in import prepared
from peer_models import fresh, outputs, shake
from peer_programs import assert_same, in_peft
from peft import PeftModel
from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import RecipeError
from ftengine.plugins.registry import Registry

LORA = [
    *((name, {"dora": True}) for name in ("llama", "gpt2", "bert", "t5", "vit", "resnet")),
    *((name, {"rslora": True}) for name in ("gpt2", "roberta", "resnet")),
    *(("llama", {"init": init}) for init in ("gaussian", "pissa", "pissa_niter_4", "olora")),
    ("gpt2", {"init": "pissa", "rslora": True, "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_fc": 3}}),
    ("llama", {"rank": 3, "alpha": 5.5}),
    ("llama", {"rank_pattern": {r"1\..*q_proj": 2, "q_proj": 4}, "alpha_pattern": {"v_proj": 3, r"0.*": 5}}),
    ("bert", {"rank_pattern": {"query": 2}, "dora": True}),
    *((name, {"targets": ["embed_tokens", "q_proj"]}) for name in ("llama", "gemma3", "bart")),
    ("llama", {"targets": ["embed_tokens", "lm_head"], "dora": True}),
    ("gpt2", {"targets": ["wte", "wpe", "c_attn"]}),
    ("t5", {"targets": r"decoder\..*\.(q|v|wo)"}),
    ("llama", {"targets": r".*\.0\..*(q|down)_proj"}),
    ("vit", {"targets": r".*(projection|q_proj|fc1)"}),
    ("distilbert", {"targets": ["q_lin"], "rslora": True}),
]
TOKENS = [
    *(("prompt", name, {"init": "random"}) for name in ("gpt2", "bert-tokens", "t5", "modernbert")),
    *(("prefix", name, {"projection": 8}) for name in ("llama", "gemma3")),
    ("prefix", "gpt2", {"init": "random"}),
]
CASES = [("lora", *case) for case in LORA] + TOKENS
FEW = (0, 1, 5, 9, 13, len(LORA) + 3)


@pytest.mark.parametrize(
    ("strategy", "name", "options"),
    [pytest.param(*case, marks=() if i in FEW else pytest.mark.slow, id=f"{case}") for i, case in enumerate(CASES)],
)
def test_peft_opens_it_with_equal_outputs(strategy, name, options, tmp_path):
    made, model = prepared({"name": strategy, **({} if strategy == "lora" else {"virtual_tokens": 3}), **options}, name)
    shake(model.module)
    ours = outputs(name, model.module)
    made.save(model, tmp_path)
    assert_same(ours, outputs(name, in_peft(name, tmp_path)), outputs(name, fresh(name)))


SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = SIZES | {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
GROUPED = COMMON | {"num_key_value_heads": 2}
NAMES = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DECODERS = {
    "Bloom": {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "GPTBigCode": NAMES | {"multi_query": True},
    "OPT": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "GPTNeoX": COMMON,
    "GPTJ": NAMES | {"rotary_dim": 4},
    "GPTNeo": {"vocab_size": 60, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    "Falcon": SIZES | {"alibi": True},
    "Mistral": GROUPED | {"sliding_window": 6},
    "Mixtral": GROUPED | {"num_local_experts": 2},
    "Gemma2": GROUPED | {"head_dim": 8, "sliding_window": 16},
    "Phi3": GROUPED,
    "Olmo2": GROUPED,
    "Cohere": GROUPED,
    "SmolLM3": GROUPED,
    "Granite": GROUPED,
    "Mpt": {"vocab_size": 60, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "Lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
}
"""More language models, by transformers' name: what the files say of a prefix, they say of each."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "prompt", "prefix"])
@pytest.mark.parametrize("kind", DECODERS)
def test_peft_opens_what_other_language_models_learnt(strategy, kind, tmp_path: Path):
    torch.manual_seed(0)
    module = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**DECODERS[kind]))
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    base, ids = copy.deepcopy(module.eval()), torch.randint(4, 60, (2, 9))

    @torch.no_grad()
    def logits(model: nn.Module) -> torch.Tensor:
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -9:]

    model = LoadedModel(module, None, kind, "causal-lm")
    made = Registry().build("strategy", {"name": strategy}, "strategy")
    try:
        if strategy != "lora":
            made.config.virtual_tokens = 3
        made.prepare(model)
    except RecipeError:
        assert (strategy, kind) == ("prefix", "Lfm2")
        return
    shake(module)
    made.save(model, tmp_path)
    ours, plain = logits(module), logits(base)
    assert_same(ours, logits(PeftModel.from_pretrained(base, tmp_path)), plain)
