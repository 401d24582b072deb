"""Convolutions, embeddings and DoRA cross between ftengine and PEFT in both directions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from expected import raises
from lora_models import prepared
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch
from ftengine.model import trainable

LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
VIT = {"image_size": 32, "patch_size": 8, **LLAMA}


@dataclass(frozen=True)
class Case:
    """A model with the layers to adapt."""

    build: Callable[[], nn.Module]
    targets: str | list[str]
    head: str = "causal-lm"
    new: tuple[str, ...] = ()

    def loaded(self) -> LoadedModel:
        torch.manual_seed(0)
        return LoadedModel(self.build().eval(), None, "memory", self.head, new_modules=self.new)


def resnet() -> nn.Module:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck", num_labels=3)
    return ResNetForImageClassification(config)


CASES = {
    "llama with embeddings": Case(
        lambda: LlamaForCausalLM(LlamaConfig(vocab_size=50, **LLAMA)), ["embed_tokens", "q_proj", "down_proj"]
    ),
    "gpt2 with positions": Case(
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=False)),
        ["wte", "wpe", "c_attn"],
    ),
    "t5": Case(lambda: T5ForConditionalGeneration(T5Config(vocab_size=50, **T5)), ["q", "v", "wo"], "seq2seq-lm"),
    "resnet": Case(resnet, ["convolution"], "image-classification", ("classifier",)),
    "vit with patches": Case(
        lambda: ViTForImageClassification(ViTConfig(num_labels=3, **VIT)),
        r".*(projection|q_proj|query|fc1|dense)",
        "image-classification",
        ("classifier",),
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@torch.no_grad()
def outputs(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    dtype = next(module.parameters()).dtype
    if getattr(module.config, "num_channels", None):
        return module.eval()(pixel_values=torch.randn(2, 3, 32, 32, dtype=dtype)).logits
    ids = torch.randint(1, 50, (2, 7))
    more = {"decoder_input_ids": ids} if module.config.is_encoder_decoder else {}
    return module.eval()(input_ids=ids, **more).logits


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_what_we_save_loads_here_and_merges(case: Case, numbers, tmp_path, dora: bool) -> None:
    loaded, again = case.loaded(), case.loaded()
    strategy = prepared(loaded, targets=case.targets, dora=dora)
    numbers.shake(loaded.module)
    strategy.save(loaded, tmp_path)
    other = prepared(again, targets=case.targets, dora=dora)
    other.load(again, tmp_path)
    ours = outputs(loaded.module)
    assert torch.equal(outputs(again.module), ours)
    other.merge(again)
    assert (outputs(again.module) - ours).norm() <= 1e-4 * ours.norm()


def test_keys_and_shapes_are_pefts(tmp_path) -> None:
    loaded = CASES["resnet"].loaded()
    prepared(loaded, targets=["convolution"], dora=True, rank=4).save(loaded, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    path = "base_model.model.resnet.encoder.stages.1.layers.0.layer.1.convolution"
    assert tensors[f"{path}.lora_A.weight"].shape == (4, 4, 3, 3)
    assert tensors[f"{path}.lora_B.weight"].shape == (4, 4, 1, 1)
    assert tensors[f"{path}.lora_magnitude_vector"].shape == (1, 4, 1, 1)
    assert {key for key in tensors if "lora" not in key} == {
        f"base_model.model.classifier.1.{name}" for name in ("weight", "bias")
    }


def embedding_adapter(folder: Path, change: Callable[[nn.Module], object] = lambda module: None) -> Path:
    """Save with PEFT an adapter of an embedding; it holds the base's own embeddings too."""
    module = CASES["llama with embeddings"].loaded().module
    change(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        get_peft_model(module, PeftConfig(target_modules=["embed_tokens"], use_dora=True)).save_pretrained(folder)
    return folder


def test_an_embedding_of_another_base_is_refused(tmp_path) -> None:
    folder = embedding_adapter(tmp_path, lambda module: nn.init.normal_(module.model.embed_tokens.weight))
    assert any(key.endswith("base_layer.weight") for key in load_file(folder / "adapter_model.safetensors"))
    with raises(BaseMismatch, "model.embed_tokens"):
        prepared(CASES["llama with embeddings"].loaded(), start_from=str(folder))


def test_adapter_names_inside_keys_are_left_out(tmp_path) -> None:
    folder = embedding_adapter(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    names = {"lora_embedding_A": "lora_embedding_A.default", "vector": "vector.default.weight"}
    renamed = {}
    for key, tensor in tensors.items():
        end = next((end for end in names if key.endswith(end)), "")
        renamed[key.removesuffix(end) + names.get(end, "")] = tensor
    assert len(renamed.keys() - tensors.keys()) == 2
    save_file(renamed, file)
    loaded = CASES["llama with embeddings"].loaded()
    prepared(loaded, start_from=str(folder))
    key = "base_model.model.model.embed_tokens.lora_magnitude_vector"
    assert torch.equal(loaded.module.model.embed_tokens.lora_magnitude, tensors[key])


def test_every_adapted_layer_learns(case: Case) -> None:
    loaded = case.loaded()
    prepared(loaded, targets=case.targets, dora=True)
    torch.manual_seed(1)
    module = loaded.module.train()
    with torch.no_grad():
        for name, parameter in trainable(module).items():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.manual_seed(1)
    if getattr(module.config, "num_channels", None):
        module(pixel_values=torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.backward()
    else:
        ids = torch.randint(1, 50, (2, 7))
        module(input_ids=ids, labels=ids).loss.backward()
    silent = [name for name, p in trainable(module).items() if p.grad is None or not p.grad.any()]
    assert silent == []
