"""Faults planted in what is exported: settings, files and answers other than were measured are refused by name."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from expected import raises
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ftengine import load_run
from ftengine.api import Prompt
from ftengine.engine.export import export_run
from ftengine.errors import ExportDiffers
from ftengine.evaluation.divergence import divergences
from ftengine.evaluation.questions import Question
from ftengine.generation import measured_settings, settings_faults
from ftengine.testing.exporters import exported_run
from ftengine_builtins.exporters import GgufExporter, OllamaExporter, TransformersExporter, gguf
from ftengine_builtins.exporters.ollama import Modelfile, modelfile, require_measured
from ftengine_builtins.exporters.transformers import TransformersConfig


@pytest.fixture
def run(talking_run):
    return load_run(talking_run)


def rewritten(name, **settings):
    def spoil(folder):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return spoil


def without_a_layer(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()  # it is the merged folder's too
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name] * 1.0001}, file, {"format": "pt"})


def in_another_dtype(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file({name: x.to(torch.bfloat16) for name, x in tensors.items()}, file, {"format": "pt"})


def export_spoilt(run, spoil, out, **config):
    class Spoilt(TransformersExporter):
        def export(self, source, folder):
            made = super().export(source, folder)
            spoil(folder)
            return made

    return export_run(run, Spoilt(TransformersConfig(**config)), out)


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (rewritten("generation_config.json", repetition_penalty=1.3), ["repetition_penalty is 1.3, measured 1.0"]),
        (
            rewritten("generation_config.json", do_sample=True, top_k=7),
            ["do_sample is True", "top_k is 7"],
        ),
        (rewritten("generation_config.json", max_new_tokens=8), ["max_new_tokens is 8, where 16 were measured"]),
        (rewritten("config.json", dtype="bfloat16"), ["dtype is 'bfloat16', measured 'float32'"]),
        (rewritten("config.json", rope_parameters={"rope_theta": 500.0, "rope_type": "default"}), ["rope_parameters"]),
        (in_another_dtype, ["model.safetensors"]),
        (without_a_layer, ["'model.layers.1.mlp.down_proj.weight'"]),
    ],
)
def test_a_fault_of_a_transformers_folder_is_named(run, tmp_path, spoil, facts):
    with raises(ExportDiffers, *facts):
        export_spoilt(run, spoil, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 1}])
def test_answers_show_settings_that_log_probabilities_do_not(served_run, tmp_path, monkeypatch, settings):
    """As of a program whose settings nobody can read."""
    run = load_run(served_run)
    monkeypatch.setattr("ftengine.engine.proof.settings_faults", lambda *_: [])
    with raises(ExportDiffers, "answers differ", "less likely", "settings"):
        export_spoilt(run, rewritten("generation_config.json", **settings), tmp_path / "out")


def test_settings_of_the_base_are_replaced_by_those_that_were_measured(run, tmp_path, monkeypatch):
    """A base that draws its answers, and one that keeps from repeating itself."""
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 20, "repetition_penalty": 1.05}
    assert measured_settings(own, {}) == {"repetition_penalty": 1.05, "do_sample": False}
    drawn = measured_settings(own, {"temperature": 0.7})
    assert (drawn["do_sample"], drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (True, 0.7, 1.0, 0)
    assert settings_faults(drawn, own, {"temperature": 0.7}) == []
    assert settings_faults({"do_sample": False}, own, {}) == ["repetition_penalty is 1.0, measured 1.05"]
    assert len(settings_faults(own, own, {})) == 4  # it is drawn, at which temperature and top_p, and cut


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_sound_export_in_a_lower_dtype_passes(run, tmp_path, dtype):
    made = export_run(run, TransformersExporter(TransformersConfig(dtype=dtype)), tmp_path / "out")
    assert made.proof.decision == "tuned"
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert module.generation_config.do_sample is False


class Words:
    """A tokenizer of one word a token; of the last two, one is special and one is part of a character."""

    words = (" yes", " no", " never", "", "\ufffd", "é", "<end>")

    def decode(self, tokens, skip_special_tokens):
        return "".join(self.words[token] for token in tokens if token != 6).replace("\ufffd\ufffd", "é")


def module(scores):
    """A model that gives each next token the same scores."""

    class Module(torch.nn.Linear):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=torch.tensor(scores).log().expand(1, input_ids.shape[1], -1))

    return SimpleNamespace(module=Module(1, 1), processor=Words())


@pytest.mark.parametrize(
    ("answer", "text", "gap"),
    [
        ((0, 0), "yes yes", 0),
        ((0, 0), "yes no", np.log(0.5 / 0.2)),
        ((0, 0), " never yes", np.log(0.5 / 0.1)),
        ((0, 0), "something else", np.log(0.5 / 0.001)),  # behind a token that shows nothing
        ((0, 0), "yes", np.nan),  # a beginning
        ((0, 6), "yes no", np.log(0.04 / 0.2)),  # what goes on is likelier than the end
        ((0, 6), "yes never", 0),
        ((2, 1), "yes", 0),  # a likelier one
        ((0, 4, 4), "yesü", 0),  # it begins a character that is not known
        ((0, 0), "yesü", np.log(0.5 / 0.06)),
    ],
)
def test_a_divergence_is_how_much_less_likely_the_text_goes_on(answer, text, gap):
    loaded = module([0.5, 0.2, 0.1, 0.001, 0.06, 0.05, 0.04])
    ended = answer[-1] == 6
    own = Question(Prompt([0], text="?"), answer, Words().decode(answer, True).strip(), ended)
    [found] = divergences(loaded, [own], [text], [6])
    assert found == pytest.approx(max(gap, 0) if gap == gap else gap, abs=1e-5, nan_ok=True)


CHATML = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are brief.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""With a system message of its own."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of a model with that template, whose answers were drawn."""
    source, _ = exported_run(tmp_path_factory.mktemp("ollama"))
    source.processor.chat_template = CHATML
    return replace(source, generation={"temperature": 0.7, "top_p": 0.9})


def replaced(old, new):
    def spoil(text):
        assert old in text
        return text.replace(old, new)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (replaced('SYSTEM """You are brief."""\n', ""), ["<|im_start|>u", "system message"]),
        (replaced("You are brief.", "You are kind."), ["You are"]),
        (replaced("assistant\n", "assistant\n\n"), ["assistant\\n\\n", "template"]),
        (replaced("{{ .Role }}\n", "{{ .Role }}"), ["template"]),
        (replaced("{{ .Content }}", "{{- .Content }}"), ["template"]),
        (replaced("{{ .Content }}", "{{ .Tools }}"), ["'.Tools'"]),
        (replaced("temperature 0.7", "temperature 0.2"), ["temperature is 0.2, measured 0.7"]),
        (replaced("PARAMETER top_p 0.9\n", ""), ["top_p is not set, measured 0.9"]),
        (replaced("repeat_penalty 1.0", "repeat_penalty 1.3"), ["repeat_penalty is 1.3, measured 1.0"]),
        (replaced("PARAMETER num_ctx", "PARAMETER num_predict 8\nPARAMETER num_ctx"), ["num_predict is 8.0"]),
        (replaced("PARAMETER stop", "PARAMETER mirostat 2\n# PARAMETER stop"), ["mirostat", "stop is not set"]),
        (replaced("FROM ./model.gguf", "FROM ./other.gguf"), ["other.gguf"]),
    ],
)
def test_a_fault_of_a_modelfile_is_named(source, spoil, facts):
    text = modelfile(source)
    require_measured(Modelfile.read(text), source)
    with raises(ExportDiffers, *facts):
        require_measured(Modelfile.read(spoil(text)), source)


def test_a_modelfile_is_read_before_its_program_is_asked(served_run, tmp_path):
    class Spoilt(OllamaExporter):
        def export(self, source, folder):
            made = super().export(source, folder)
            file = folder / "Modelfile"
            file.write_text(file.read_text().replace("assistant\n", "assistant\n\n"))
            return made

    with raises(ExportDiffers, "Modelfile"):
        export_run(load_run(served_run), Spoilt(), tmp_path / "out", rows=2)


@pytest.mark.parametrize("named", [{"penalty_repeat": 1.3}, {"temp": 0.8}])
def test_a_gguf_file_draws_answers_as_was_measured(served_run, tmp_path, monkeypatch, named):
    wanted = gguf.sampling

    class Spoilt(GgufExporter):
        def export(self, source, folder):
            with monkeypatch.context() as patch:
                patch.setattr(gguf, "sampling", lambda source: {**wanted(source), **named})
                return super().export(source, folder)

    [(name, value)] = named.items()
    with raises(ExportDiffers, f"{name} is {float(np.float32(value))}, measured"):
        export_run(load_run(served_run), Spoilt(), tmp_path / "out", rows=2)
