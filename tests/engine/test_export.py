"""Exports: what is left is the tuned model, and what is made wrong on purpose is refused and leaves nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from expected import raises
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ftengine import fine_tune, load_run
from ftengine.cli import main
from ftengine.engine import proof
from ftengine.engine.export import export_run
from ftengine.errors import ExportDiffers, NotExportable, NotMergeable, RunError
from ftengine.evaluation.likeness import likeness
from ftengine.evaluation.questions import Question
from ftengine.testing.exporters import exported_run
from ftengine_builtins.exporters import (
    GgufExporter,
    PeftExporter,
    SentenceTransformersExporter,
    TransformersExporter,
    gguf_tokenizer,
)
from ftengine_builtins.exporters.peft import scale_of


@pytest.fixture
def run(served_run):
    return load_run(served_run)


@pytest.fixture(scope="module")
def served(served_run, tmp_path_factory):
    """The run's transformers export, and its manifest."""
    out = tmp_path_factory.mktemp("export") / "out"
    return out, export_run(load_run(served_run), TransformersExporter(), out)


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_transformers_export_proves_itself(served):
    out, made = served
    proof = made.proof
    assert proof.decision == "tuned"
    assert proof.from_tuned < proof.noise < 0.01 < proof.from_base
    assert proof.p < 0.05
    assert proof.same_answers == proof.questions == 8
    assert json.loads((out / "manifest.json").read_text())["proof"]["decision"] == "tuned"
    assert made.files.keys() == {path.name for path in out.iterdir()} - {"manifest.json"}
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
def test_a_peft_export_has_one_rank_and_no_scale_that_a_server_could_lose(run, tmp_path):
    made = export_run(run, PeftExporter(), tmp_path / "out")
    assert made.proof.decision == "tuned"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    shapes = {key: x.shape for key, x in load_file(tmp_path / "out" / "adapter_model.safetensors").items()}
    assert {shape[0] for key, shape in shapes.items() if "lora_A" in key} == {8}
    base = run.recipe.model.source
    tokens = torch.arange(5, 25)[None]
    folders = run.trained, tmp_path / "out"
    both = [PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder) for folder in folders]
    with torch.no_grad():
        one, other = (model(tokens).logits for model in both)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_adapters_of_one_base_are_opened_beside_one_another(run, build_chat_recipe, tmp_path):
    """PEFT switches among exports on one copy of the base; each gives the outputs of its own run."""
    other = build_chat_recipe(
        strategy={"name": "lora", "rank": 2}, train__seed=1, train__max_steps=4, output=str(tmp_path / "other")
    )
    runs, tokens, served = {"first": run, "other": fine_tune(other)}, torch.arange(5, 25)[None], tmp_path / "served"
    for name, one in runs.items():
        export_run(one, PeftExporter(), served / name, verify=False)
    base = AutoModelForCausalLM.from_pretrained(run.recipe.model.source)
    model = PeftModel.from_pretrained(base, served / "first", adapter_name="first")
    model.load_adapter(served / "other", adapter_name="other")
    outputs = {}
    with torch.no_grad():
        for name in ("other", "first", "other"):
            model.set_adapter(name)
            outputs[name] = model(tokens).logits
            right = runs[name].open_model().module.eval()(input_ids=tokens).logits
            torch.testing.assert_close(outputs[name], right, atol=1e-4, rtol=1e-4)
    assert (outputs["first"] - outputs["other"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({"lora_alpha": 16}, 4, 4.0),
        ({"lora_alpha": 16, "use_rslora": True}, 4, 8.0),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 8}}, 4, 2.0),
        ({"lora_alpha": 16, "alpha_pattern": {"k_proj": 8}}, 4, 4.0),
    ],
)
def test_a_scale_is_what_peft_says(config, rank, scale):
    assert scale_of(config, "base_model.model.model.layers.0.self_attn.q_proj", rank) == scale


def test_without_its_program_a_format_is_written_and_reported_unverified(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    made = export_run(run, GgufExporter(), tmp_path / "out")
    assert made.proof is None
    assert "pip install xllamacpp" in made.unproven
    assert made.facts["tensors"] == {"F16": 15, "F32": 5}


def test_the_command_says_that_the_proof_was_left_out(served_run, tmp_path):
    args = ["export", str(served_run), "--to", "gguf", str(tmp_path / "out"), "--no-verify"]
    result = CliRunner().invoke(main, [*args, "--option", "lora=true", "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["proof"] is None
    assert "--no-verify" in made["unproven"]
    assert (made["format"]["name"], made["facts"]["rank"]) == ("gguf", 8)
    again = CliRunner().invoke(main, args)
    assert again.exit_code == 2
    assert "not empty" in again.stderr
    assert CliRunner().invoke(main, [*args[:4], str(tmp_path / "other"), "--dtype", "Q3"]).exit_code == 2


# Sabotage.


def of_base(source):
    """Put the base's weights in the place of the merged ones."""
    folder = source.merged("auto")
    merged = load_file(folder / "model.safetensors")
    base = load_file(Path(source.base) / "model.safetensors")
    save_file({name: base[name] for name in merged}, folder / "model.safetensors", {"format": "pt"})
    return folder


def without_a_layer(source):
    """Lose one layer's update."""
    folder = source.merged("auto")
    merged, base = load_file(folder / "model.safetensors"), load_file(Path(source.base) / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**merged, name: base[name]}, folder / "model.safetensors", {"format": "pt"})
    return folder


def with_a_blank(source):
    """Write one blank more into the template."""
    folder = source.merged("auto")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant\n", "assistant \n"))
    return folder


def with_two_beginnings(source):
    """Have the template write another BOS."""
    folder = source.merged("auto")
    file = folder / "chat_template.jinja"
    file.write_text("{{ bos_token }}" + file.read_text())
    return folder


def with_a_head_that_was_tied(source):
    """Grow the vocabulary, and lose the tie: the head is a fresh one."""
    folder = source.merged("auto")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings
    model.resize_token_embeddings(model.config.vocab_size + 64)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(0.02 * torch.randn(model.lm_head.weight.shape))
    model.save_pretrained(folder)
    return folder


class Sabotaged(TransformersExporter):
    """Export what `spoil` returns in the place of the merged folder."""

    spoil = None

    def export(self, source, folder):
        spoilt = type(self).spoil(source)
        return super().export(replace(source, merged=lambda dtype: spoilt), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (of_base, "like the base"),
        pytest.param(without_a_layer, "not the tuned model", marks=pytest.mark.slow),
        pytest.param(with_a_blank, "a blank more", marks=pytest.mark.slow),
        pytest.param(with_two_beginnings, "second BOS", marks=pytest.mark.slow),
        pytest.param(with_a_head_that_was_tied, "not the tuned model", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_the_tuned_model_is_refused_and_leaves_nothing(run, tmp_path, spoil, told):
    exporter = type("Spoilt", (Sabotaged,), {"spoil": staticmethod(spoil)})()
    with raises(ExportDiffers, told):
        export_run(run, exporter, tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.slow
def test_the_end_of_a_turn_in_gguf_is_what_answers_are_trained_to_end_with(tmp_path):
    """Where a model's generation settings have further ends; the file has room for one more."""
    source, writer = exported_run(tmp_path)[0], MagicMock()
    end = source.processor.eos_token_id
    gguf_tokenizer.write(writer, replace(source, stop=(end, end + 1, end + 2)))
    writer.add_eot_token_id.assert_called_once_with(end + 2)
    writer.add_eom_token_id.assert_called_once_with(end + 1)


@pytest.mark.slow
@pytest.mark.parametrize("times", [0.5, 8**-0.5])
def test_a_scale_that_is_another_is_named(run, tmp_path, monkeypatch, times):
    monkeypatch.setattr("ftengine_builtins.exporters.peft.scale_of", lambda *asked: times * scale_of(*asked))
    with raises(ExportDiffers, "not the tuned model", f"with about {times:.4g} times what training changed", "scale"):
        export_run(run, PeftExporter(), tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.parametrize(("kind", "dtype"), [("Q4_0", "Q8_0"), ("Q5_0", "Q8_0"), ("BF16", "F16")])
def test_a_quantisation_that_is_coarser_than_it_says_is_refused(run, tmp_path, kind, dtype):
    import gguf

    def coarse(source):
        """Round the merged matrices to a coarser type first."""
        kept = source.merged("float32")
        folder, rounded = tmp_path / "coarse", gguf.GGMLQuantizationType[kind]
        shutil.copytree(kept, folder)
        tensors = load_file(kept / "model.safetensors")
        for name, x in tensors.items():
            if x.ndim == 2:
                again = gguf.dequantize(gguf.quantize(x.float().numpy(), rounded), rounded)
                tensors[name] = torch.from_numpy(again.copy())
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    class Coarse(GgufExporter):
        def export(self, source, folder):
            spoilt = coarse(source)
            return super().export(replace(source, merged=lambda _: spoilt), folder)

    with raises(ExportDiffers, "coarser"):
        export_run(run, Coarse(GgufExporter.Config(dtype=dtype)), tmp_path / "out", rows=2)
    assert left(tmp_path) == ["coarse"]


def asked(text, ended=True):
    return Question(None, (), text, ended)


@pytest.mark.slow
def test_a_lost_end_token_is_refused(run, tmp_path):
    class Endless(TransformersExporter):
        def export(self, source, folder):
            made = super().export(source, folder)
            file = folder / "generation_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 5}))
            return made

    with raises(ExportDiffers, "'<|im_end|>'"):
        export_run(run, Endless(), tmp_path / "out")
    assert left(tmp_path) == []


def test_a_trained_part_that_has_changed_is_not_exported(build_chat_recipe, tmp_path):
    run = fine_tune(build_chat_recipe(train__max_steps=1, output=str(tmp_path / "run")))
    file = run.trained / "adapter_model.safetensors"
    save_file({name: 2 * x for name, x in load_file(file).items()}, file, {"format": "pt"})
    with raises(RunError, "adapter_model.safetensors"):
        export_run(load_run(run.path), PeftExporter(), tmp_path / "out")
    assert left(tmp_path) == ["run"]


# What is refused before weights are read.


def test_a_model_that_writes_text_is_no_encoder(run, tmp_path, no_weights):
    with raises(NotExportable, "'causal-lm'", "embedding"):
        export_run(run, SentenceTransformersExporter(), tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_no_server_takes_is_refused_with_what_to_do(tmp_path, changed, told):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **changed}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with raises(NotExportable, told, "--to transformers"):
        PeftExporter().check(SimpleNamespace(trained=tmp_path))


def test_an_architecture_that_llama_cpp_is_not_known_to_compute_alike_is_refused(gpt2_folder):
    module = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    with raises(NotExportable, "GPT2LMHeadModel", "LlamaForCausalLM"):
        GgufExporter().check(SimpleNamespace(module=module))


def test_a_strategy_without_a_merged_form_is_refused_before_weights_are_read(run, tmp_path, monkeypatch, no_weights):
    def refuse(strategy):
        raise NotMergeable(f"strategy {strategy.name!r} cannot be merged.")

    monkeypatch.setattr("ftengine.engine.export.check_merge", refuse)
    for exporter in (TransformersExporter(), GgufExporter()):
        with raises(NotMergeable, "'lora'"):
            export_run(run, exporter, tmp_path / "out")
    assert left(tmp_path) == []


# The decision.


def test_a_decision_is_paired_over_rows():
    near, far = [0.01, 0.02, 0.01, 0.03, 0.02, 0.01], [0.4, 0.5, 0.3, 0.6, 0.5, 0.4]
    assert likeness(near, far, 0.05).decision == "tuned"
    assert likeness(far, near, 0.05).decision == "base"
    assert likeness(far, [x + 0.3 for x in far], 0.05).decision == "neither"
    rare = [0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.2, 15.0]  # one row that is far from the base hides no other from the test
    assert likeness([0.001] * 8, rare, 0.05).decision == "tuned"
    assert likeness([0.001] * 8, rare, 0.05).p == pytest.approx(2**-7)
    assert likeness([0.001] * 5, rare[:5], 0.05).decision == "undecided"
    assert likeness([0.001] * 5, rare[:5], 0.05).needed >= 6
    many = likeness([0.001] * 30, [0.1] * 30, 0.05)
    assert (many.decision, many.p) == ("tuned", pytest.approx(1e-4))
    vague = likeness([0.02, 0.03, 0.01, 0.02], [0.03, 0.01, 0.02, 0.03], 0.05)
    assert vague.decision == "undecided"
    assert vague.needed > 4
    assert likeness([0.0] * 6, [0.0] * 6, 0.05).decision == "undecided"


def test_a_number_near_zero_is_measured_by_the_size_of_the_others():
    own = [np.array([x]) for x in (3e-5, 1.0, -1.0)]
    asked = proof.Asked("test", (), lambda opened: [], own, base=[])
    assert max(asked.far([x + 1e-3 for x in own], own)) < 2e-3
