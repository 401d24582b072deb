"""`targets` mean what they mean in PEFT, and a pattern that misses says so."""

from __future__ import annotations

import copy

import pytest
import torch
from expected import raises
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from ftengine.api import LoadedModel
from ftengine.errors import NoMatch
from ftengine_builtins.strategies.lora import LoRA, LoRAConfig
from ftengine_builtins.strategies.lora_layers import lora_layers

TASKS = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}


def ours(loaded: LoadedModel, targets) -> set[str]:
    strategy = LoRA(LoRAConfig(targets=targets))
    strategy.prepare(loaded)
    taken = {path for paths in strategy.matches().values() for path in paths}
    assert taken == set(lora_layers(loaded.module))
    return taken


def pefts(loaded: LoadedModel, targets) -> set[str]:
    config = PeftConfig(target_modules=targets, task_type=TASKS[loaded.head])
    return set(get_peft_model(copy.deepcopy(loaded.module), config).targeted_module_names)


def roberta() -> LoadedModel:
    """A classifier whose head is a module with two linear layers of common names."""
    config = RobertaConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    module = RobertaForSequenceClassification(config)
    return LoadedModel(module, None, "roberta", "sequence-classification", new_modules=("classifier",))


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", ["q_proj", "v_proj"]),
        ("llama", ["self_attn.q_proj", "model.layers.1.mlp.down_proj"]),
        ("llama", ["lm_head"]),
        ("llama", r".*\.layers\.0\..*_proj"),
        ("llama", r".*(q|v)_proj"),
        ("gpt2", "all-linear"),
        ("gpt2", ["c_attn", "mlp.c_proj"]),
        ("gpt2", r"transformer\.h\.1\.attn\.c_\w+"),
        ("bert", "all-linear"),
        ("bert", ["query", "dense"]),
        ("roberta", "all-linear"),
        ("roberta", ["query", "dense"]),
    ],
)
def test_targets_take_what_peft_takes(request, load, model: str, targets) -> None:
    if model == "roberta":
        loaded = roberta()
    else:
        folder = request.getfixturevalue(f"{model}_folder")
        loaded = load(folder, "sequence-classification" if model == "bert" else "causal-lm")
    expected = pefts(loaded, targets)
    assert ours(loaded, targets) == expected != set()


def test_all_linear_leaves_head_and_embeddings_alone(llama_folder, load) -> None:
    taken = ours(load(llama_folder), "all-linear")
    assert len(taken) == 2 * 7  # two blocks of q, k, v, o, gate, up, down
    assert not any("lm_head" in path or "embed" in path for path in taken)


def test_a_pretrained_head_trains_whole_as_in_peft(bert_folder, load) -> None:
    loaded = load(bert_folder, "sequence-classification")
    loaded.new_modules = ()
    assert not any(path.startswith("classifier") for path in ours(loaded, "all-linear"))
    assert all(parameter.requires_grad for parameter in loaded.module.classifier.parameters())


def test_matches_count_each_pattern_apart(llama_folder, load) -> None:
    strategy = LoRA(LoRAConfig(targets=["q_proj", "layers.1.mlp.up_proj"]))
    strategy.prepare(load(llama_folder))
    assert strategy.matches() == {
        "q_proj": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"],
        "layers.1.mlp.up_proj": ["model.layers.1.mlp.up_proj"],
    }


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (
            ["q_porj"],
            ["'q_porj' matches no module of LlamaForCausalLM", "Did you mean 'q_proj'", "named q_proj, k_proj"],
        ),
        (["proj"], ["'proj' matches no module"]),
        (["q_proj", "qkv"], ["'qkv' matches no module"]),
        (
            ["query", "q_proj", "value"],
            ["patterns 'query', 'value' match no module of LlamaForCausalLM", "named q_proj"],
        ),
        ("q_proj", ["'q_proj' matches no module", "whole path; put plain names in a list", "mean [q_proj]?"]),
        ("q_proj,v_proj", ["Did you mean [q_proj, v_proj]?"]),
        ("q_porj", ["Did you mean [q_proj]"]),
        (r"model\.layers\.9\..*", ["matches no module"]),
        (["input_layernorm"], ["'model.layers.0.input_layernorm', which is a LlamaRMSNorm"]),
        (["mlp"], ["'model.layers.0.mlp', which is a LlamaMLP"]),
        (r".*layernorm", ["which is a LlamaRMSNorm"]),
    ],
)
def test_a_pattern_without_a_layer_is_an_error(llama_folder, load, targets, parts: list[str]) -> None:
    loaded = load(llama_folder)
    with pytest.raises(NoMatch) as error:
        LoRA(LoRAConfig(targets=targets)).prepare(loaded)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not lora_layers(loaded.module)
    assert all(parameter.requires_grad for parameter in loaded.module.parameters())


def test_a_model_without_linear_layers_is_an_error() -> None:
    loaded = LoadedModel(nn.Sequential(nn.Conv2d(3, 3, 1)), None, "memory", "causal-lm")
    with raises(NoMatch, "'all-linear'", "Sequential"):
        ours(loaded, "all-linear")


def test_a_model_whose_only_linear_layer_is_its_head_is_told_what_to_name() -> None:
    module = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    loaded = LoadedModel(module, None, "memory", "image-classification", new_modules=("classifier",))
    with pytest.raises(NoMatch) as error:
        ours(loaded, "all-linear")
    assert "linear layers are named" not in str(error.value)
    assert str(error.value).endswith("Set strategy.targets=[convolution].")
    assert ours(loaded, ["convolution"])


T5 = T5Config(vocab_size=40, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=24, decoder_start_token_id=0)
BART = BartConfig(
    vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "within", "query"),
    [
        (lambda: T5ForConditionalGeneration(T5), "", "q"),
        (lambda: BartForConditionalGeneration(BART), "model.", "q_proj"),
    ],
    ids=["t5", "bart"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_embeddings_whose_weight_encoder_and_decoder_hold_are_never_called(make, within, query, device: str) -> None:
    with torch.device(device):
        loaded = LoadedModel(make(), None, "memory", "seq2seq-lm")
    with pytest.raises(NoMatch) as error:
        LoRA(LoRAConfig(targets=["shared", query])).prepare(loaded)
    tables = [f"{within}{stack}.embed_tokens" for stack in ("encoder", "decoder")]
    assert f"'{within}shared', which is never called: {' and '.join(tables)} hold its weight" in str(error.value)
    assert ours(loaded, ["embed_tokens"]) == set(tables)
    if device == "cpu":
        ids = torch.arange(5, 15).view(1, -1)
        loaded.module(input_ids=ids, labels=ids).loss.backward()
        assert all(p.grad is not None for p in loaded.module.parameters() if p.requires_grad)


def test_preparing_twice_is_an_error(llama_folder, load) -> None:
    loaded = load(llama_folder)
    ours(loaded, ["q_proj"])
    with raises(NoMatch, "a LoRA already"):
        ours(loaded, ["q_proj"])


def test_layers_whose_parent_reads_their_weights_are_left_out() -> None:
    # nn.MultiheadAttention multiplies by out_proj.weight itself: a LoRA there would never be called.
    module = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "up": nn.Linear(8, 8)})
    loaded = LoadedModel(module, None, "memory", "causal-lm")
    with raises(NoMatch, "MultiheadAttention"):
        ours(loaded, ["out_proj"])
    assert ours(loaded, "all-linear") == {"up"}


def test_layers_with_a_replaced_forward_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].forward = lambda x: x
    with raises(NoMatch, "'1'", "forward"):
        ours(LoadedModel(module, None, "memory", "causal-lm"), "all-linear")
