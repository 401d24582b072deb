"""Prompts and prefixes cross between ftengine and PEFT in both directions, with equal outputs."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from expected import raises
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from virtual_token_models import build, inputs, padded, tokens

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RecipeError, RunError
from ftengine.model import trainable
from ftengine_builtins.strategies.prefix import Prefix
from ftengine_builtins.strategies.prompt import Prompt

KINDS = {"prompt": (Prompt, Prompt.Config, PromptTuningConfig), "prefix": (Prefix, Prefix.Config, PrefixTuningConfig)}


def prepared(kind: str, name: str, **options) -> tuple[LoadedModel, Prompt | Prefix]:
    loaded = build(name)
    strategy_class, options_class, _ = KINDS[kind]
    strategy = strategy_class(options_class(**{"virtual_tokens": 5} | options))
    strategy.prepare(loaded)
    return loaded, strategy


def shake(module: nn.Module) -> None:
    torch.manual_seed(2)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.3)


def saved(loaded: LoadedModel, strategy: Prompt | Prefix, folder: Path) -> Path:
    folder.mkdir()
    strategy.save(loaded, folder)
    return folder


def questions(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Return inputs that PEFT reads as ftengine does: its classifiers on decoders pool padding where there is some."""
    pools_last = hasattr(loaded.module, "score")
    ids, mask = (tokens(), None) if pools_last else padded(tokens(), 4, "right")
    return inputs(loaded, ids, mask)


@torch.no_grad()
def logits(module: nn.Module, loaded: LoadedModel) -> torch.Tensor:
    """Return logits of the real tokens; PEFT's prompts show in front of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = module.eval()(**questions(loaded)).logits
    return output[:, -9:] if loaded.head in ("causal-lm", "token-classification") else output


def opened_by_peft(base: nn.Module, folder: Path) -> PeftModel:
    """Open an adapter with PEFT; it must find every key it looks for, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_the_files_are_those_that_peft_writes(name, tmp_path):
    loaded, strategy = prepared("prompt", name)
    folder = saved(loaded, strategy, tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert tuple(file.get_slice("prompt_embeddings").get_shape()) == (5, 32)
        whole = {"base_model.classifier.weight", "base_model.classifier.bias"} if name == "bert" else set()
        assert set(file.keys()) == {"prompt_embeddings"} | whole
    content = json.loads((folder / "adapter_config.json").read_text())
    assert content["num_transformer_submodules"] == 1
    assert content["inference_mode"] is True
    assert content.keys() <= PromptTuningConfig(task_type="CAUSAL_LM").to_dict().keys()


def test_a_projection_is_saved_as_the_prefix_it_makes(tmp_path):
    loaded, strategy = prepared("prefix", "llama", projection=16)
    shake(loaded.module)
    folder = saved(loaded, strategy, tmp_path / "adapter")
    expected = logits(loaded.module, loaded)
    opened = opened_by_peft(build("llama").module, folder)
    torch.testing.assert_close(logits(opened, loaded), expected, rtol=1e-5, atol=1e-5)

    with_projection, plain = prepared("prefix", "llama", projection=16), prepared("prefix", "llama")
    for again, strategy in (with_projection, plain):
        strategy.load(again, folder)
        assert torch.equal(logits(again.module, again), expected)
    reopened = Prefix(Prefix.Config(**strategy.loading_options()))
    assert reopened.config.projection is None


def test_a_finished_run_is_reopened_without_its_projection():
    strategy = Prefix(Prefix.Config(projection=16))
    assert strategy.config.init == "random"
    again = Prefix.Config(**strategy.config.model_dump())
    assert again.projection == 16
    assert strategy.loading_options()["projection"] is None


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_run_can_start_from_an_adapter(kind, tmp_path):
    loaded, strategy = prepared(kind, "llama")
    shake(loaded.module)
    folder = saved(loaded, strategy, tmp_path / "adapter")
    options_class = KINDS[kind][1]
    options = options_class(start_from=str(folder))
    assert options.virtual_tokens == 5
    again = build("llama")
    strategy = KINDS[kind][0](options)
    strategy.prepare(again)
    assert torch.equal(logits(again.module, again), logits(loaded.module, loaded))
    assert strategy.loading_options()["start_from"] is None
    with raises(RecipeError, "virtual_tokens is 6", "5"):
        options_class(start_from=str(folder), virtual_tokens=6)


def edited(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"peft_type": "LORA"}, RunError, "'LORA'"),
        ({"num_virtual_tokens": 6}, BaseMismatch, "virtual_tokens 6"),
        ({"num_virtual_tokens": "5"}, RunError, "num_virtual_tokens='5'"),
        ({"encoder_reparameterization_type": "LSTM"}, RunError, "does not have"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, error, message, tmp_path):
    loaded, strategy = prepared("prompt", "llama")
    folder = saved(loaded, strategy, tmp_path / "adapter")
    edited(folder, **changes)
    before = copy.deepcopy(loaded.module.state_dict())
    with raises(error, message):
        strategy.load(loaded, folder)
    assert all(torch.equal(value, before[key]) for key, value in loaded.module.state_dict().items())


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    loaded, strategy = prepared("prompt", "llama")
    with raises(RunError, "adapter_config.json"):
        strategy.load(loaded, tmp_path)
    saved(loaded, strategy, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with raises(RunError, "pickle"):
        strategy.load(loaded, tmp_path / "adapter")


def test_tensors_that_do_not_fit_change_nothing(tmp_path):
    loaded, strategy = prepared("prompt", "bert")
    folder = saved(loaded, strategy, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    before = {key: value.clone() for key, value in trainable(loaded.module).items()}
    for changed in (
        {key: value for key, value in tensors.items() if "classifier" not in key},
        tensors | {"base_model.bert.pooler.dense.bias": torch.zeros(32)},
        tensors | {"prompt_embeddings": torch.zeros(5, 16)},
    ):
        save_file(changed, file)
        with pytest.raises(BaseMismatch):
            strategy.load(loaded, folder)
    assert all(torch.equal(value, before[key]) for key, value in trainable(loaded.module).items())


def test_a_prefix_of_another_model_is_refused(tmp_path):
    folder = saved(*prepared("prefix", "gpt2"), tmp_path / "adapter")
    loaded, strategy = prepared("prefix", "llama")
    with raises(BaseMismatch, "2 layers and 4 heads", "2, 2 and 16"):
        strategy.load(loaded, folder)
