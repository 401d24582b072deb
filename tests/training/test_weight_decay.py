"""What weight decay applies to, on real architectures."""

import pytest
import timm
import torch
from tiny import tiny_bert, tiny_gpt2, tiny_llama, tiny_resnet, tiny_t5, tiny_vit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from ftengine.model import decayed, default_param_groups

MODELS = {
    "gpt2": (tiny_gpt2, AutoModelForCausalLM, ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"], []),
    "llama": (tiny_llama, AutoModelForCausalLM, ["model.layers.0.mlp.up_proj.weight"], []),
    "t5": (
        tiny_t5,
        AutoModelForSeq2SeqLM,
        ["shared.weight", "decoder.block.0.layer.1.EncDecAttention.q.weight"],
        [f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for side in ("encoder", "decoder")],
    ),
    "bert": (tiny_bert, AutoModelForSequenceClassification, ["classifier.weight", "bert.pooler.dense.weight"], []),
    "vit": (
        tiny_vit,
        AutoModelForImageClassification,
        ["classifier.weight", "vit.embeddings.patch_embeddings.projection.weight"],
        ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings"],
    ),
    "resnet": (tiny_resnet, AutoModelForImageClassification, ["classifier.1.weight"], []),
}


@pytest.mark.parametrize("name", MODELS)
def test_matrices_decay_and_vectors_norms_tokens_and_biases_do_not(name, tmp_path):
    write, cls, yes, no = MODELS[name]
    module = cls.from_pretrained(write(tmp_path))
    names, parameters = decayed(module), dict(module.named_parameters())
    assert set(yes) <= names
    assert not set(no) & names
    assert set(no) <= parameters.keys()
    # Everything else of two dimensions or more decays, as in transformers; nothing of one does.
    assert names == {key for key, p in parameters.items() if p.ndim > 1} - set(no)
    decays, rests = default_param_groups(module, 0.1, 0.3)
    assert (decays["weight_decay"], rests["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in decays["params"]} == {id(parameters[key]) for key in names}
    assert len(decays["params"]) + len(rests["params"]) == len(parameters)


def test_a_norm_over_several_dimensions_and_what_a_model_exempts_do_not_decay():
    assert decayed(nn.Sequential(nn.LayerNorm((3, 4, 4)), nn.Conv2d(3, 2, 1))) == {"1.weight"}
    assert decayed(nn.Linear(5, 1)) == {"weight"}  # one output is a matrix all the same
    assert decayed(nn.Conv2d(3, 1, 2)) == {"weight"}
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    assert not any("bias" in name or "norm" in name for name in decayed(swin))
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert not {"pos_embed", "cls_token"} & decayed(vit)
    assert "blocks.0.attn.qkv.weight" in decayed(vit)


def test_frozen_parameters_are_in_no_group():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = default_param_groups(module, 0.1, 0.1)
    assert [p for group in groups for p in group["params"]] == [module[1].weight, module[1].bias]
    assert isinstance(groups[0]["params"][0], torch.nn.Parameter)
