"""GGUF files, answered by llama.cpp itself: `make test-export` runs these in an environment that has xllamacpp."""

import json
import shutil

import pytest
from expected import raises
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ftengine import fine_tune, load_run
from ftengine.engine.export import export_run
from ftengine.errors import ExportDiffers
from ftengine.testing import check_component
from ftengine_builtins.exporters import GgufExporter, OllamaExporter
from ftengine_builtins.exporters import gguf as writer
from ftengine_builtins.exporters.gguf import GgufConfig

xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; make test-export has it")


@pytest.fixture
def run(served_run):
    return load_run(served_run)


@pytest.mark.parametrize(
    "options", [{"dtype": "F32"}, {"dtype": "F16"}, {"dtype": "BF16"}, {"dtype": "Q8_0"}, {"lora": True}]
)
def test_llama_cpp_answers_as_the_tuned_model(run, tmp_path, options):
    made = export_run(run, GgufExporter(GgufConfig(**options)), tmp_path / "out")
    proof = made.proof
    assert proof.decision == "tuned"
    assert proof.from_tuned < proof.noise < proof.from_base


def test_a_gguf_that_lost_the_order_of_its_rows_is_refused(llama_folder, build_chat_recipe, tmp_path, monkeypatch):
    """Of a model whose tokens look at some more than at others, which a fresh one's hardly do."""
    base = shutil.copytree(llama_folder, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    sharp = {name: x * (30 if ".q_proj." in name or ".k_proj." in name else 1) for name, x in weights.items()}
    save_file(sharp, base / "model.safetensors", {"format": "pt"})
    run = fine_tune(build_chat_recipe(model__source=str(base), output=str(tmp_path / "run")))
    monkeypatch.setattr(writer, "rearranged", lambda source, name, tensor: tensor)
    with raises(ExportDiffers, "tuned model"):
        export_run(load_run(run.path), GgufExporter(GgufConfig(dtype="F32")), tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "run"]


def test_ollama_gets_template_stops_and_settings(run, tmp_path):
    made = export_run(run, OllamaExporter(), tmp_path / "out")
    assert made.proof.decision == "tuned"
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert {'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 512", "PARAMETER temperature 0.0"} <= set(lines)


@pytest.mark.parametrize("exporter", [GgufExporter, OllamaExporter])
def test_exporters_keep_their_contract(exporter):
    check_component(exporter)


MIXTURES = {
    MixtralConfig: {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    OlmoeConfig: {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    Qwen3MoeConfig: {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("config", [MistralConfig, Qwen2Config, Qwen3Config, *MIXTURES])
def test_each_architecture_is_answered_as_the_tuned_model(llama_folder, build_chat_recipe, tmp_path, config):
    base = shutil.copytree(llama_folder, tmp_path / "base")
    kept = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    kept |= {"num_key_value_heads", "max_position_embeddings", "head_dim", "bos_token_id", "eos_token_id"}
    sizes = {name: x for name, x in json.loads((base / "config.json").read_text()).items() if name in kept}
    off = {"sliding_window": None} if config is MistralConfig else {"use_sliding_window": False}
    module = AutoModelForCausalLM.from_config(config(**{**sizes, **off, **MIXTURES.get(config, {})}))
    for name, weight in module.named_parameters():
        if "experts" in name or name.endswith("gate.weight"):
            weight.data.mul_(5)  # so that it matters which expert a token passes
    module.save_pretrained(base)
    recipe = build_chat_recipe(
        strategy={"name": "lora", "rank": 8, "alpha": 32, "rslora": True, "rank_pattern": {"q_proj": 2}},
        model__source=str(base),
        train__epochs=6,
        train__learning_rate=0.02,
        output=str(tmp_path / "run"),
    )
    made = export_run(load_run(fine_tune(recipe).path), GgufExporter(GgufConfig(dtype="F32")), tmp_path / "out")
    assert made.proof.decision == "tuned"
