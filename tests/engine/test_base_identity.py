"""A base that computes something else is another base, by whatever it differs, and the error says by what."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from click.testing import CliRunner
from expected import raises
from runs import Interrupting, Interruption
from tiny import tiny_bert, tiny_gpt2, tiny_llama, tiny_resnet, tiny_t5
from torch import nn
from transformers import AutoTokenizer

from ftengine import Recipe, fine_tune
from ftengine.api import LoadedModel, LoadRequest
from ftengine.cli import main
from ftengine.errors import BaseMismatch, RunError
from ftengine.identity import fingerprint_base, fingerprint_processor
from ftengine.identity.base import changes, fingerprint_tokens
from ftengine.plugins.registry import Registry


def identity(folder, head="causal-lm", **options):
    """Return the fingerprint of a source as the engine takes it."""
    loader = Registry().loader_of(str(folder), {"name": "auto", **options})
    loaded = loader.load(LoadRequest(str(folder), head))
    return {
        **fingerprint_base(loaded),
        "processor": fingerprint_processor(loaded.processor),
        "tokens": fingerprint_tokens(loaded.processor),
    }


def of(module):
    return fingerprint_base(LoadedModel(module, None, "source", "head"))


def edit(file, **values):
    """Change a JSON file; keys of inner objects are written with __."""
    content = json.loads(file.read_text()) if file.exists() else {}
    for key, value in values.items():
        *path, last = key.split("__")
        inner = content
        for step in path:
            inner = inner[step]
        inner[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("make", "head", "key", "value", "told"),
    [
        (tiny_gpt2, "causal-lm", "n_head", 2, "n_head was 4 and is 2"),
        (tiny_gpt2, "causal-lm", "activation_function", "relu", "activation_function was 'gelu_new' and is 'relu'"),
        (tiny_gpt2, "causal-lm", "layer_norm_epsilon", 0.1, "layer_norm_epsilon was 1e-05 and is 0.1"),
        (tiny_llama, "causal-lm", "rope_parameters__rope_theta", 500.0, "rope_theta was 10000.0 and is 500.0"),
        (tiny_llama, "causal-lm", "is_causal", False, "is_causal was not there and is False"),  # of no class's fields
        (tiny_t5, "seq2seq-lm", "decoder_start_token_id", 5, "decoder_start_token_id was 0 and is 5"),
    ],
)
def test_a_changed_configuration_is_another_base(tmp_path, make, head, key, value, told):
    make(tmp_path / "base")
    before = identity(tmp_path / "base", head)
    edit(tmp_path / "base" / "config.json", **{key: value})
    after = identity(tmp_path / "base", head)
    assert before["weights"] == after["weights"]
    (change,) = changes(before, after)
    assert told in change


@pytest.mark.parametrize(
    ("setting", "differs"),
    [({"repetition_penalty": 1.5}, True), ({"no_repeat_ngram_size": 2}, True), ({"temperature": 0.6}, False)],
)
def test_generation_settings_count_unless_each_call_gives_its_own(tmp_path, setting, differs):
    before = identity(tiny_llama(tmp_path / "base"))
    edit(tmp_path / "base" / "generation_config.json", **setting)
    found = changes(before, identity(tmp_path / "base"))
    assert [next(iter(setting)) in text for text in found] == [True] * differs


def test_a_key_that_a_newer_version_adds_is_no_change_and_one_of_the_same_version_is(tmp_path):
    now = identity(tiny_llama(tmp_path / "base"))
    older = {key: value for key, value in now["config"].items() if key not in ("head_dim", "mlp_bias")}
    assert changes({**now, "config": {**older, "version": "5.1.0"}}, now) == []
    assert len(changes({**now, "config": {**older, "version": "5.1.0", "hidden_act": "relu"}}, now)) == 1
    assert len(changes({**now, "config": older}, now)) == 1


def test_buffers_that_are_stored_count(tmp_path):
    folder = tiny_resnet(tmp_path / "base")
    loader = Registry().loader_of(str(folder), {"name": "auto"})
    module = loader.load(LoadRequest(str(folder), "image-classification")).module
    before = of(module)
    next(buffer for name, buffer in module.named_buffers() if name.endswith("running_mean")).add_(1)
    (change,) = changes(before, of(module))
    assert "statistics" in change


def test_code_that_comes_with_a_model_counts(tmp_path, monkeypatch):
    file = tmp_path / "own_model.py"
    monkeypatch.syspath_prepend(tmp_path)

    def found(body):
        file.write_text(f"from torch import nn\n\nclass Own(nn.Linear):\n    {body}\n")
        sys.modules.pop("own_model", None)
        import own_model

        torch.manual_seed(0)
        return of(own_model.Own(2, 2))

    before = found("heads = 4")
    (change,) = changes(before, found("heads = 2"))
    assert "own_model.py" in change


@pytest.mark.parametrize("changed", ["one/layer.py", "other/layer.py"])
def test_two_files_of_one_name_count_both(tmp_path, monkeypatch, changed):
    monkeypatch.syspath_prepend(tmp_path)

    def found():
        layers = []
        for name in ("one", "other"):
            for loaded in (f"{name}.layer", name):
                sys.modules.pop(loaded, None)
            layers.append(importlib.import_module(f"{name}.layer").Own(2, 2))
        return fingerprint_base(LoadedModel(nn.Sequential(*layers), None, "source", "head"))["code"]

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layer.py").write_text("from torch import nn\n\nclass Own(nn.Linear):\n    pass\n")
    before = found()
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "    heads = 2\n")
    assert found() != before


@pytest.mark.parametrize("changed", ["its_own/build.py", "its_own/sizes.py"])
def test_the_function_that_builds_a_model_counts_and_what_stands_beside_it(tmp_path, monkeypatch, changed):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "its_own").mkdir()
    for name, body in (
        ("__init__", ""),
        ("sizes", "SIZE = 2\n"),
        ("build", "from torch import nn\nfrom its_own.sizes import SIZE\n\ndef small():\n    return nn.Linear(2, 2)\n"),
    ):
        (tmp_path / "its_own" / f"{name}.py").write_text(body)

    def found():
        for name in ("its_own.build", "its_own.sizes", "its_own"):
            sys.modules.pop(name, None)
        loader = Registry().build("loader", "callable", "model.loader")
        return fingerprint_base(loader.load(LoadRequest("its_own.build:small", "head")))["code"]

    before = found()
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "# other\n")
    assert changes({"code": before}, {"code": found()})


def test_a_tokenizer_that_divides_texts_in_another_way_is_another(tmp_path):
    tiny_bert(tmp_path / "base")
    before, same, other = (AutoTokenizer.from_pretrained(tmp_path / "base") for _ in range(3))
    other.backend_tokenizer.normalizer.lowercase = not before.backend_tokenizer.normalizer.lowercase
    assert fingerprint_processor(before) == fingerprint_processor(other)
    assert fingerprint_tokens(before) == fingerprint_tokens(same) != fingerprint_tokens(other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, chat_file):
    """A folder with a tiny GPT-2, `base`, and a run on it."""
    folder = tmp_path_factory.mktemp("identity")
    tiny_gpt2(folder / "base")
    fine_tune(recipe_of(folder, chat_file))
    return folder


LORA = {"name": "lora", "rank": 2, "targets": ["c_attn"]}


def recipe_of(folder, chat_file, strategy=LORA, output="run"):
    return Recipe.make(
        {
            "model": {"source": str(folder / "base")},
            "task": "causal-lm",
            "data": {"train": str(chat_file), "validation": 0.2},
            "strategy": strategy,
            "train": {"max_steps": 2, "checkpoint_every": 1, "batch_size": 4, "precision": "float32"},
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None, "reuse_base": False},
            "output": str(folder / output),
        }
    )


@pytest.fixture
def moved(trained, tmp_path):
    """A copy of run and base."""
    for name in ("base", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("config.json", {"n_head": 2}, "n_head was 4 and is 2"),
        ("generation_config.json", {"repetition_penalty": 3.0}, "repetition_penalty was not there and is 3.0"),
        ("tokenizer.json", {"pre_tokenizer__add_prefix_space": True}, "divides a text"),
    ],
)
def test_no_command_takes_a_base_with_other_settings(moved, file, values, told):
    rows = moved / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "the printer is slow"}]}\n')
    run = str(moved / "run")
    commands = (
        ["predict", run, "--input", str(rows), "--option", "max_new_tokens=2"],
        ["predict", run, "--input", str(rows), "--option", "max_new_tokens=2", "--base"],
        ["evaluate", run],
        ["merge", run, str(moved / "merged")],
    )
    assert CliRunner().invoke(main, commands[0]).exit_code == 0
    edit(moved / "base" / file, **values)
    for command in commands:
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, told in result.stderr) == (2, True), (command, result.output)
    assert not (moved / "merged").exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_settings_of_its_base(trained, tmp_path, chat_file):
    shutil.copytree(trained / "base", tmp_path / "base")
    recipe = recipe_of(tmp_path, chat_file)
    with pytest.raises(Interruption):
        fine_tune(recipe, listener=Interrupting(1))
    edit(tmp_path / "base" / "config.json", layer_norm_epsilon=0.5)
    with raises(RunError, "layer_norm_epsilon", "1e-05", "0.5"):
        fine_tune(recipe, resume=True)
    edit(tmp_path / "base" / "config.json", layer_norm_epsilon=1e-5)
    assert fine_tune(recipe, resume=True).facts.base["config"]["layer_norm_epsilon"] == 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        LORA,
        pytest.param({"name": "prompt", "virtual_tokens": 2}, marks=pytest.mark.slow),
        pytest.param({"name": "adapter"}, marks=pytest.mark.slow),
    ],
    ids=lambda strategy: strategy["name"],
)
def test_an_adapter_does_not_start_on_a_base_with_other_settings(moved, chat_file, strategy):
    fine_tune(recipe_of(moved, chat_file, strategy, "first"))
    recipe = recipe_of(
        moved, chat_file, {"name": strategy["name"], "start_from": str(moved / "first" / "adapter")}, "next"
    )
    edit(moved / "base" / "config.json", activation_function="relu")
    with raises(BaseMismatch, "activation_function", "gelu_new", "'relu'"):
        fine_tune(recipe)
    edit(moved / "base" / "config.json", activation_function="gelu_new")
    fine_tune(recipe)
