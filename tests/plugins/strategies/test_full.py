"""Full tuning trains everything and leaves a model that transformers opens alone."""

from __future__ import annotations

import json

import pytest
import torch
from expected import raises
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RecipeError, RunError
from ftengine.model import count, trainable
from ftengine_builtins.strategies.full import Full


def tuned(loaded: LoadedModel, numbers) -> Full:
    strategy = Full()
    strategy.prepare(loaded)
    numbers.shake(loaded.module)
    return strategy


def test_every_parameter_trains(loaded) -> None:
    Full().prepare(loaded)
    assert trainable(loaded.module) == dict(loaded.module.named_parameters())
    assert count(loaded.module)[0] == count(loaded.module)[1] > 0


def test_transformers_opens_what_is_saved(loaded, numbers, tmp_path) -> None:
    tuned(loaded, numbers).save(loaded, tmp_path)
    classifies = loaded.head == "sequence-classification"
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    module, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(numbers.logits(module), numbers.logits(loaded.module))
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == loaded.processor.get_vocab()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_ties_hold_after_loading(llama_folder, load, numbers, tmp_path) -> None:
    loaded, again = load(llama_folder), load(llama_folder)
    strategy = tuned(loaded, numbers)
    strategy.save(loaded, tmp_path)
    strategy.load(again, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert again.module.lm_head.weight is again.module.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_module_is_saved(llama_folder, load, tmp_path, dtype) -> None:
    loaded = load(llama_folder, dtype=dtype)
    Full().save(loaded, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]


def test_a_self_contradicting_generation_config_is_passed_on(llama_folder, load, tmp_path) -> None:
    loaded = load(llama_folder)
    loaded.module.generation_config.update(do_sample=False, temperature=0.5, top_p=0.9)
    with raises(ValueError, "GenerationConfig"):  # what transformers does by itself
        loaded.module.save_pretrained(tmp_path / "refused")
    Full().save(loaded, tmp_path)
    assert loaded.module.generation_config.temperature == 0.5
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (opened.generation_config.temperature, opened.generation_config.top_p) == (0.5, 0.9)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_packed_weights_are_refused(dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    module[0].weight = nn.Parameter(torch.zeros(2, 3).to(dtype), requires_grad=False)
    with raises(RecipeError, "0.weight", str(dtype)[6:]):
        Full().prepare(LoadedModel(module, None, "memory", "causal-lm"))


def test_a_base_without_the_head_is_refused(bert_folder, load) -> None:
    loaded = load(bert_folder, "sequence-classification")
    loaded.module.config.num_labels = 3
    with raises(BaseMismatch, "0 unexpected", "classifier.bias", "classifier.weight"):
        Full().load(loaded, bert_folder)


def test_unreadable_folders_are_errors(llama_folder, load, tmp_path) -> None:
    loaded = load(llama_folder)
    with raises(RunError, "model.safetensors"):
        Full().load(loaded, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with raises(RunError, "safetensors"):
        Full().load(loaded, tmp_path)
    Full().save(loaded, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(RunError):
        Full().load(loaded, tmp_path)
