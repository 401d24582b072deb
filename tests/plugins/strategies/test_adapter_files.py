"""AdapterHub's files: what is written, read and refused. `tests/peers` asks the library itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_models import logits, opened, prepared, shake
from expected import raises
from safetensors.torch import load_file, save_file

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RunError
from ftengine.model import trainable
from ftengine_builtins.strategies.adapter import Adapter, AdapterConfig
from ftengine_builtins.strategies.adapterhub_format import read_config

HOUSES = {
    "gpt2": ("transformer.h.0.attention_adapters", "transformer.h.0.output_adapters"),
    "llama": ("model.layers.0.attention_adapters", "model.layers.0.output_adapters"),
    "t5": ("encoder.block.0.layer.0", "encoder.block.0.layer.1", "decoder.block.0.layer.0", "decoder.block.0.layer.2"),
    "bert": ("bert.encoder.layer.0.attention.output", "bert.encoder.layer.0.output"),
    "roberta": ("roberta.encoder.layer.0.attention.output", "roberta.encoder.layer.0.output"),
    "distilbert": (
        "distilbert.transformer.layer.0.attention_adapters",
        "distilbert.transformer.layer.0.output_adapters",
    ),
    "vit": ("vit.encoder.layer.0.attention_adapters", "vit.encoder.layer.0.output.output_adapters"),
}
"""Where AdapterHub keeps the adapters of a model's first block, of encoder and decoder alike."""


def saved(name: str, folder: Path, seed: int = 2, **options) -> Path:
    """Save an adapter with random weights, and return its folder."""
    strategy, loaded = prepared(name, **options)
    shake(loaded.module, seed)
    folder.mkdir(exist_ok=True)
    strategy.save(loaded, folder)
    return folder


def edited(folder: Path, **entries) -> Path:
    """Change entries of the file's inner config."""
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    content["config"] |= entries
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", HOUSES)
def test_keys_are_adapterhubs(name: str, tmp_path) -> None:
    folder = saved(name, tmp_path, placement="houlsby", leave_out=[1, 3] if name == "t5" else [1])
    inner = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
    expected = {f"{house}.adapters.ftengine.{tensor}" for house in HOUSES[name] for tensor in inner}
    tensors = load_file(folder / "adapter.safetensors")
    assert set(tensors) == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_config_is_adapterhubs_preset(tmp_path) -> None:
    folder = saved("bert", tmp_path, placement="parallel", reduction_factor=2, scaling=4)
    content = json.loads((folder / "adapter_config.json").read_text())
    config = content.pop("config")
    assert content == {
        "model_type": "bert",
        "hidden_size": 16,
        "model_name": "memory/bert",
        "model_class": "BertForSequenceClassification",
        "name": "ftengine",
        "version": "adapters.1.3.0",
    }
    expected = {
        "mh_adapter": False, "output_adapter": True, "cross_adapter": False, "is_parallel": True,
        "original_ln_before": False, "original_ln_after": True, "reduction_factor": 2, "non_linearity": "relu",
        "scaling": 4.0, "dropout": 0.0, "leave_out": [], "init_weights": "mam_adapter",
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert isinstance(config["scaling"], float)


def test_a_new_module_within_the_base_is_kept_in_a_file_of_its_own(tmp_path) -> None:
    def model(**options) -> tuple[Adapter, LoadedModel]:
        loaded, strategy = opened("bert"), Adapter(AdapterConfig(**options))
        loaded.new_modules = ("bert.pooler", "classifier")
        strategy.prepare(loaded)
        return strategy, loaded

    strategy, loaded = model()
    shake(loaded.module)
    strategy.save(loaded, tmp_path)
    assert set(load_file(tmp_path / "new_modules.safetensors")) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert not any(
        "pooler" in key for file in ("adapter", "model_head") for key in load_file(tmp_path / f"{file}.safetensors")
    )
    again, fresh = model()
    again.load(fresh, tmp_path)
    assert torch.equal(logits(fresh.module), logits(loaded.module))
    _, continued = model(start_from=str(tmp_path))
    assert torch.equal(logits(continued.module), logits(loaded.module))


def test_training_continues_from_an_adapter(tmp_path) -> None:
    options = {
        "placement": "houlsby",
        "non_linearity": "tanh",
        "dropout": 0.1,
        "leave_out": [0],
        "sublayers": ["output"],
    }
    folder = saved("gpt2", tmp_path, **options)
    strategy, loaded = prepared("gpt2", start_from=str(folder))
    first = trainable(loaded.module)
    assert {key: getattr(strategy.config, key) for key in options} == options
    assert strategy.loading_options()["start_from"] is None
    again, fresh = prepared("gpt2", **strategy.loading_options())
    again.load(fresh, folder)
    assert all(torch.equal(first[key], tensor) for key, tensor in trainable(fresh.module).items())


def test_a_language_models_own_head_may_lie_beside_the_adapter_but_not_another(tmp_path) -> None:
    folder = saved("llama", tmp_path)
    strategy, loaded = prepared("llama")
    head = loaded.module.lm_head.weight.detach().clone()
    save_file({"lm_head.weight": head}, folder / "model_head.safetensors")
    strategy.load(loaded, folder)
    save_file({"lm_head.weight": head + 0.1}, folder / "model_head.safetensors")
    with raises(BaseMismatch, "lm_head.weight"):
        strategy.load(loaded, folder)


def test_plain_pickles_of_tensors_are_read_and_others_are_not(tmp_path) -> None:
    folder = saved("gpt2", tmp_path)
    tensors = load_file(folder / "adapter.safetensors")
    (folder / "adapter.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_adapter.bin")
    strategy, loaded = prepared("gpt2")
    strategy.load(loaded, folder)
    assert torch.equal(
        loaded.module.transformer.h[0].mlp.bottleneck.up.weight,
        tensors["transformer.h.0.output_adapters.adapters.ftengine.adapter_up.weight"],
    )
    torch.save({"a": Mischief(folder / "ran")}, folder / "pytorch_adapter.bin")
    with raises(RunError, "safetensors"):
        strategy.load(loaded, folder)
    assert not (folder / "ran").exists()
    torch.save({"state": [1]}, folder / "pytorch_adapter.bin")
    with pytest.raises(RunError):
        strategy.load(loaded, folder)


class Mischief:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "entry",
    [
        {"ln_before": True}, {"ln_after": True}, {"use_gating": True}, {"phm_layer": True}, {"inv_adapter": "nice"},
        {"original_ln_after": False}, {"residual_before_ln": False}, {"scaling": "learned"}, {"stochastic_depth": 0.1},
        {"adapter_residual_before_ln": True}, {"of_a_later_version": 1},
    ],
    ids=lambda entry: next(iter(entry)),
)  # fmt: skip
def test_what_ftengine_does_not_compute_is_refused(entry, tmp_path) -> None:
    folder = edited(saved("bert", tmp_path), **entry)
    with raises(RunError, f"{next(iter(entry))}="):
        read_config(folder)


def test_an_adapter_of_a_model_that_the_library_computes_otherwise_is_refused(tmp_path) -> None:
    folder = saved("resnet", tmp_path)
    strategy, loaded = prepared("resnet")
    strategy.load(loaded, folder)
    file = folder / "trained_config.json"
    content = json.loads(file.read_text())
    assert not (folder / "adapter_config.json").exists()
    # As AdapterHub would name it, and as ftengine did before it knew which models AdapterHub has.
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / "trained.safetensors").rename(folder / "adapter.safetensors")
    file.unlink()
    strategy.load(loaded, folder)
    (folder / "adapter_config.json").write_text(json.dumps(content | {"name": "theirs"}))
    with raises(RunError, "ResNetForImageClassification"):
        strategy.load(loaded, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "config, name or version"),
        ('{"peft_type": "LORA"}', "(LORA)"),
        ('{"name": "a", "config": {}}', "config, name or version"),
        ('{"name": "a", "version": "1", "config": {"architecture": "lora"}}', "'lora'"),
        ('{"name": "a", "version": "1", "config": {"reduction_factor": "x"}}', "no usable value"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with raises(RunError, message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "parallel"}, "'parallel'"),
        ({"scaling": 2.0}, "scaling 2.0"),
        ({"non_linearity": "tanh"}, "non_linearity 'relu'"),
        ({"sublayers": ["attention", "output"]}, "8 keys missing"),
        ({"leave_out": [0]}, "4 unexpected"),
        ({"bottleneck": 4}, "(8,"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(options, message: str, tmp_path) -> None:
    folder = saved("gpt2", tmp_path)
    strategy, loaded = prepared("gpt2", **{"non_linearity": "relu", "scaling": 1.0, **options})
    before = {key: tensor.clone() for key, tensor in trainable(loaded.module).items()}
    with raises(BaseMismatch, message):
        strategy.load(loaded, folder)
    assert all(torch.equal(before[key], tensor) for key, tensor in trainable(loaded.module).items())
