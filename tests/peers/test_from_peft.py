"""What PEFT saves is read with PEFT's outputs, or refused by name: never read as something else.

Each field of the installed PEFT's LoraConfig has its cases here; a field that a later version adds fails the test
that counts them, until it is known what the field does.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from expected import raises
from peer_models import ARCHITECTURES, fresh, loaded, outputs, shake
from peer_programs import assert_same
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import config as of_lora

from ftengine.errors import BaseMismatch, NoMatch, RunError
from ftengine.plugins.registry import Registry
from ftengine_builtins.strategies.lora import LoRAConfig

TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
READ = [
    ("llama", {}),
    *(("llama", {"r": r, "lora_alpha": alpha}) for r, alpha in ((1, 3), (5, 8))),
    ("llama", {"lora_dropout": 0.3}),
    *(("llama", {"target_modules": targets}) for targets in ("all-linear", r".*\.0\..*(q|down)_proj", ["v_proj"])),
    ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    ("gemma3", {"target_modules": ["embed_tokens", "k_proj"]}),
    ("bart", {"target_modules": ["q_proj", "fc1"]}),
    ("t5", {"target_modules": ["q", "wi"]}),
    ("llama", {"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]}),
    ("llama", {"fan_in_fan_out": True}),
    *((name, {"fan_in_fan_out": value}) for name in ("gpt2", "gpt2-classifier") for value in (True, False)),
    ("llama", {"use_rslora": True}),
    *((name, {"use_dora": True, "target_modules": "all-linear"}) for name in ("llama", "gpt2", "bert", "t5", "vit")),
    ("llama", {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}),
    *(("resnet", {"use_dora": dora, "target_modules": ["convolution"]}) for dora in (True, False)),
    *(("llama", {"init_lora_weights": init}) for init in (False, "gaussian", "orthogonal", "mica")),
    ("llama", {"rank_pattern": {"q_proj": 3, "layers.0.self_attn.v_proj": 2, r"^model\.layers\.1.*v_proj": 4}}),
    ("llama", {"rank_pattern": {"q_proj": 3}, "use_rslora": True, "alpha_pattern": {r"1\.self_attn\.q_proj": 5}}),
    ("llama", {"rank_pattern": {"down_proj": 3, "q_proj": 2, "self_attn.q_proj": 5}, "alpha_pattern": {"wi": 2}}),
    ("llama", {"megatron_core": "another.core"}),
    ("llama", {"qalora_group_size": 8}),
    *((name, {}) for name in ("qwen3", "gemma3", "bert", "bert-tokens", "roberta", "t5", "bart", "vit")),
    ("distilbert", {"target_modules": ["q_lin", "v_lin"]}),
    ("distilbert", {"modules_to_save": ["pre_classifier", "classifier"]}),
]
REFUSED = [
    ("llama", {"exclude_modules": ["k_proj"], "target_modules": "all-linear"}, "exclude_modules"),
    *(("gpt2", {"bias": bias}, "bias") for bias in ("all", "lora_only")),
    ("llama", {"modules_to_save": ["lm_head"]}, "lm_head"),
    ("t5", {"target_modules": ["q", "wi", "shared"]}, "shared"),  # which T5 never calls
    *(("llama", {"init_lora_weights": i}, "init_lora_weights") for i in ("olora", "pissa", "pissa_niter_2")),
    *(("llama", {"layers_to_transform": layers}, "layers_to_transform") for layers in (0, 1, [1], [0])),
    ("llama", {"layers_to_transform": [0], "layers_pattern": "layers"}, "layers_pattern"),
    ("llama", {"trainable_token_indices": [7, 0]}, "trainable_token_indices"),
    ("llama", {"velora_config": of_lora.VeloraConfig(num_groups=4)}, "velora_config"),
    *(("llama", {"alora_invocation_tokens": ids}, "alora_invocation_tokens") for ids in ([5, 6], [0])),
    ("llama", {"monteclora_config": of_lora.MontecloraConfig()}, "monteclora_config"),
    ("llama", {"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ("llama", {"lora_bias": True}, "lora_bias"),
    ("llama", {"use_bdlora": of_lora.BdLoraConfig(["q_proj"], nblocks=2, match_strict=False)}, "use_bdlora"),
    ("llama", {"kasa_config": of_lora.KasaConfig()}, "kasa_config"),
    ("llama", {"ensure_weight_tying": True, "target_modules": ["embed_tokens"]}, "ensure_weight_tying"),
]
EDITED = [
    # What needs data, a quantised base or another library to make is written into a plain adapter's file.
    *({"init_lora_weights": init} for init in ("corda", "loftq", "lora_ga")),
    *({key: {}} for key in ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config")),
    {"alora_invocation_tokens": []},
    {"arrow_config": {"top_k": 2}},
    {"megatron_config": {"hidden_size": 8}},
    {"use_qalora": True},
    # What a later version may add.
    *({"of_a_later_version": value} for value in (True, 0, 1.5, "x", [0], {"a": None})),
]
WITHOUT_EFFECT = [
    *({key: {"a": 1}} for key in ("loftq_config", "eva_config", "corda_config", "lora_ga_config")),
    {"init_lora_weights": "eva", "eva_config": {"rho": 2}},
    {"runtime_config": {"ephemeral_gpu_offload": True}},
    *({"of_a_later_version": value} for value in (None, False, "", [], {}, 0.0)),
]


def some(cases: list[tuple]) -> list[Any]:
    """Leave every fourth to `make test`, and the others to `make test-slow` and `make test-peers`."""
    return [pytest.param(*case, marks=() if i % 4 == 0 else pytest.mark.slow) for i, case in enumerate(cases)]


def by_peft(name: str, config: Any, folder: Path) -> torch.Tensor:
    """Train with PEFT and save; return its outputs."""
    config.task_type = TASK_TYPES.get(ARCHITECTURES[name].head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model = get_peft_model(fresh(name), config)
        shake(model)
        model.save_pretrained(folder)
        return outputs(name, model)


def lora_by_peft(name: str, options: dict[str, Any], folder: Path) -> torch.Tensor:
    head = {"modules_to_save": list(ARCHITECTURES[name].new) or None}
    targets = {"target_modules": "all-linear"} if name in ("gemma3", "roberta", "distilbert", "vit") else {}
    return by_peft(name, LoraConfig(**{"r": 4, "lora_alpha": 6} | head | targets | options), folder)


def read(strategy: str, name: str, folder: Path) -> torch.Tensor:
    """Start from a folder as a recipe does; return the outputs."""
    model = loaded(name)
    Registry().build("strategy", {"name": strategy, "start_from": str(folder)}, "strategy").prepare(model)
    return outputs(name, model.module)


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def edited(content: dict[str, Any], folder: Path) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("name", "options"), some(READ), ids=str)
def test_a_lora_of_pefts_is_read_with_equal_outputs(name, options, tmp_path):
    theirs = lora_by_peft(name, options, tmp_path)
    assert_same(read("lora", name, tmp_path), theirs, outputs(name, fresh(name)))


@pytest.mark.parametrize(("name", "options", "key"), some(REFUSED), ids=str)
def test_a_lora_that_computes_something_else_is_refused_by_name(name, options, key, tmp_path):
    theirs = lora_by_peft(name, options, tmp_path)
    assert theirs.isfinite().all()
    with raises((RunError, BaseMismatch, NoMatch), key):
        read("lora", name, tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    lora_by_peft("llama", {}, folder)
    return content_of(folder)


@pytest.mark.parametrize("changes", EDITED, ids=str)
def test_a_key_that_changes_the_computation_is_refused_by_name(changes, plain, tmp_path):
    with raises(RunError, f"{next(iter(changes))}="):
        LoRAConfig(start_from=str(edited(plain | changes, tmp_path)))


@pytest.mark.parametrize("changes", WITHOUT_EFFECT, ids=str)
def test_a_key_without_effect_is_passed_over(changes, plain, tmp_path):
    assert LoRAConfig(start_from=str(edited(plain | changes, tmp_path))).rank == 4


def test_every_field_of_pefts_lora_has_a_case():
    tried = {key for case in (*READ, *REFUSED) for key in case[1]}
    tried |= {key for changes in (*EDITED, *WITHOUT_EFFECT) for key in changes} - {"of_a_later_version"}
    own = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"}
    assert {field.name for field in dataclasses.fields(LoraConfig)} - own - {"task_type"} == tried


@pytest.mark.parametrize(
    ("strategy", "own"), [("lora", "LORA"), ("prompt", "PROMPT_TUNING"), ("prefix", "PREFIX_TUNING")]
)
def test_an_adapter_of_another_method_is_refused_by_name(strategy, own, plain, tmp_path):
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        if kind.value != own:
            with raises(RunError, f"'{kind.value}'", f"'{own}'"):
                read(strategy, "llama", edited(plain | {"peft_type": kind.value}, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_options_that_meet_are_read_with_equal_outputs_or_refused(seed, tmp_path):
    """Several of the cases together, drawn by the seed."""
    draw = random.Random(seed)
    name = draw.choice(["llama", "gpt2", "bert", "t5"])
    of_model = [case[1] for case in READ if case[0] == name]
    options = {key: value for case in draw.choices(of_model, k=3) for key, value in case.items()}
    refused = draw.choice([case for case in REFUSED if case[0] == name] or [None]) if draw.random() < 0.3 else None
    if refused is not None:
        options |= refused[1]
    try:
        theirs = lora_by_peft(name, options, tmp_path)
    except (TypeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"PEFT has no {options}: {error}")
    if refused is not None:
        with pytest.raises((RunError, BaseMismatch, NoMatch)):
            read("lora", name, tmp_path)
    else:
        assert_same(read("lora", name, tmp_path), theirs, outputs(name, fresh(name)))


# Virtual tokens

TEXTS = ("llama", "gpt2", "qwen3", "gemma3", "llama-classifier", "bert", "bert-tokens", "roberta", "distilbert")
TEXTS += ("gpt2-classifier", "modernbert", "t5", "bart")
TOKENS = [
    *(("prompt", name, PromptTuningConfig(num_virtual_tokens=3)) for name in TEXTS),
    ("prompt", "t5", PromptTuningConfig(num_virtual_tokens=3, num_transformer_submodules=1)),
    *(("prefix", name, PrefixTuningConfig(num_virtual_tokens=3)) for name in ("llama", "gpt2", "qwen3", "gemma3")),
    ("prefix", "llama", PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8)),
]
FEW = {("prompt", "bert"), ("prompt", "t5"), ("prefix", "llama")}


@pytest.mark.parametrize(
    ("strategy", "name", "config"),
    [pytest.param(*case, marks=() if case[:2] in FEW else pytest.mark.slow, id=f"{case[:2]}") for case in TOKENS],
)
def test_virtual_tokens_of_pefts_are_read_with_equal_outputs(strategy, name, config, tmp_path):
    config = copy.deepcopy(config)
    if name == "distilbert":
        config.token_dim, config.num_attention_heads = 32, 4  # PEFT cannot tell
    theirs = by_peft(name, config, tmp_path)
    assert_same(read(strategy, name, tmp_path), theirs, outputs(name, fresh(name)))


@pytest.mark.parametrize(("strategy", "made"), [("prompt", PromptTuningConfig), ("prefix", PrefixTuningConfig)])
def test_every_field_of_virtual_tokens_is_known(strategy, made, tmp_path):
    """Another value of a field is read with equal outputs, or refused."""
    by_peft("llama", made(num_virtual_tokens=3), tmp_path)
    ours, content = read(strategy, "llama", tmp_path), content_of(tmp_path)
    file = Registry().build("strategy", strategy, "strategy").config.File
    known = {field.alias or name for name, field in file.model_fields.items()} | file.without_effect
    assert {field.name for field in dataclasses.fields(made)} <= known
    for changes in ({"of_a_later_version": True}, {"num_virtual_tokens": 4}, {"token_dim": "32"}):
        with pytest.raises((RunError, BaseMismatch)):
            read(strategy, "llama", edited(content | changes, tmp_path))
    for key in file.without_effect - {"peft_type"}:
        assert torch.equal(read(strategy, "llama", edited(content | {key: "x"}, tmp_path)), ours)
