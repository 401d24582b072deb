"""What is compared: tiny models of many architectures, strategies, and a run of a few steps of both, looked into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from expert_models import MIXTURES
from rows import photos, write_rows
from tiny import byte_level_tokenizer, tiny_bert, tiny_gpt2, tiny_llama, tiny_resnet, tiny_t5, tiny_vit, write
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ftengine import Recipe
from ftengine.model import open_model
from ftengine.testing.models import sensitise

TRAINED, HELD_OUT = 10, 4
"""Rows; three steps of at most four make an epoch, the last of which is smaller."""

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 128}
GROUPED = SMALL | {"hidden_size": 32, "num_key_value_heads": 2}
BART = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 2}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
SLIDING = {"sliding_window": 16}
"""Shorter than most rows."""


def tiny_decoder(folder: Path, config: Any, **settings: Any) -> Path:
    """Write a decoder of any architecture, with a byte-level tokenizer."""
    tokenizer = byte_level_tokenizer(pad_token="<|endoftext|>")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made = config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ends, **settings)
    model = BartForConditionalGeneration if config is BartConfig else AutoModelForCausalLM.from_config
    return write(folder, model(made).float().eval(), tokenizer)


@dataclass(frozen=True)
class Architecture:
    """A tiny model: what writes its folder, its task, and its settings that switch dropout on."""

    write: Callable[..., Path]
    task: str = "causal-lm"
    dropout: Mapping[str, float] = field(default_factory=dict)
    """What the settings are called; where there are none the model has no dropout of its own."""


def _dropouts(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 0.1)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        partial(tiny_llama, hidden_size=32, intermediate_size=48), dropout=_dropouts("attention_dropout")
    ),
    "qwen3": Architecture(partial(tiny_decoder, config=Qwen3Config, head_dim=8, **GROUPED)),
    "gemma3": Architecture(
        partial(tiny_decoder, config=Gemma3TextConfig, head_dim=8, layer_types=["sliding_attention", "full_attention"],
                query_pre_attn_scalar=8, **SLIDING, **GROUPED)
    ),
    "phi3": Architecture(partial(tiny_decoder, config=Phi3Config, **GROUPED), dropout=_dropouts("resid_pdrop")),
    "gpt2": Architecture(tiny_gpt2, dropout=_dropouts("attn_pdrop", "embd_pdrop", "resid_pdrop")),
    "gpt-neox": Architecture(
        partial(tiny_decoder, config=GPTNeoXConfig, hidden_size=32, **SMALL),
        dropout=_dropouts("hidden_dropout", "attention_dropout"),
    ),
    "mistral": Architecture(partial(tiny_decoder, config=MistralConfig, **SLIDING, **GROUPED)),
    "mixtral": Architecture(
        partial(tiny_decoder, config=MixtralConfig, num_local_experts=3, num_experts_per_tok=2, **GROUPED)
    ),
    "qwen3-moe": Architecture(
        partial(tiny_decoder, config=Qwen3MoeConfig, **GROUPED | MIXTURES["Qwen3Moe"])
    ),
    "olmoe": Architecture(partial(tiny_decoder, config=OlmoeConfig, **GROUPED | MIXTURES["Olmoe"])),
    "gpt-oss": Architecture(partial(tiny_decoder, config=GptOssConfig, **GROUPED | MIXTURES["GptOss"])),
    "bert": Architecture(
        tiny_bert, "text-classification", _dropouts("hidden_dropout_prob", "attention_probs_dropout_prob")
    ),
    "t5": Architecture(tiny_t5, "seq2seq-lm", _dropouts("dropout_rate")),
    "bart": Architecture(
        partial(tiny_decoder, config=BartConfig, **BART), "seq2seq-lm",
        _dropouts("dropout", "attention_dropout", "activation_dropout"),
    ),
    "vit": Architecture(
        tiny_vit, "image-classification", _dropouts("hidden_dropout_prob", "attention_probs_dropout_prob")
    ),
    "resnet": Architecture(tiny_resnet, "image-classification"),
}  # fmt: skip

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 4, "dropout": 0.1},
    "dora": {"name": "lora", "rank": 4, "dropout": 0.1, "dora": True},
    "adapter": {"name": "adapter", "bottleneck": 4, "dropout": 0.1},
    "prompt": {"name": "prompt", "virtual_tokens": 4},
    "prefix": {"name": "prefix", "virtual_tokens": 4},
    "bitfit": {"name": "bitfit"},
}


@dataclass(frozen=True)
class Cell:
    """A strategy on an architecture, with dropout of both or without."""

    strategy: str
    architecture: str
    dropout: bool = False
    precision: str = "float32"
    draw: int = 0
    """The seed of the base model's weights."""

    def __str__(self) -> str:
        marks = ["dropout"] * self.dropout + [self.precision] * (self.precision != "float32")
        return "-".join([self.strategy, self.architecture, *marks])

    def recipe(self, folder: Path, output: str, overrides: Mapping[str, Any]) -> Recipe:
        """Return a recipe of three steps; model and data are written into `folder` unless they are there."""
        kind, wet = ARCHITECTURES[self.architecture], self.dropout
        model = folder / f"{self.architecture}-{'dropout' if wet else 'dry'}-{self.draw}"
        if not model.exists():
            _write_lively(kind, model, wet, self.draw)
        strategy = dict(STRATEGIES[self.strategy])
        if "dropout" in strategy and not wet:
            strategy["dropout"] = 0.0
        if strategy["name"] == "lora" and kind.task == "image-classification" and self.architecture == "resnet":
            strategy["targets"] = ["convolution"]
        content = {
            "model": {"source": str(model)},
            "task": {"name": kind.task},
            "data": {"train": _data(folder, kind.task), "validation": HELD_OUT / (TRAINED + HELD_OUT)},
            "strategy": strategy,
            "train": {
                "max_steps": 3, "batch_size": 4, "precision": self.precision, "optimizer": "sgd",
                "learning_rate": 0.005, "schedule": "constant", "warmup": 0, "max_grad_norm": None, "keep_best": False,
                "validate_every": 100, "checkpoint_every": 100,
            },
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None, "reuse_base": False},
            "output": str(folder / output),
        }  # fmt: skip
        for key, value in overrides.items():
            *parents, last = key.split(".")
            place: Any = content
            for name in parents:
                place = place[name]
            place[last] = value
        return Recipe.make(content)


def _write_lively(kind: Architecture, folder: Path, wet: bool, draw: int) -> None:
    """Write a model whose every weight matters: small initial weights and zero biases hide what is wrong."""
    torch.manual_seed(0)
    kind.write(folder, **(kind.dropout if wet else dict.fromkeys(kind.dropout, 0.0)))
    config = AutoConfig.from_pretrained(folder)
    module, _ = open_model(folder, torch.float32)
    sensitise(module, draw)
    for name, tensor in module.state_dict().items():
        if name.endswith("final_logits_bias"):  # zeros at first, as no training moves it
            tensor.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        if name.endswith("Attention.q.weight"):  # T5 scales its weights, not its attention
            tensor.mul_(config.d_kv**-0.5)
    module.save_pretrained(folder)


def _data(folder: Path, task: str) -> str:
    """Write the rows of a task unless they are there: of different lengths, each once."""
    count = TRAINED + HELD_OUT
    if task == "image-classification":
        images = folder / "photos"
        return str(images if images.exists() else photos(images, count // 2))
    file = folder / f"{task}.jsonl"
    if not file.exists():
        asked = [f"What is {'very ' * (i % 5)}{i}?" for i in range(count)]
        if task == "text-classification":
            rows = [{"text": text, "label": ("good", "bad", "late")[i % 3]} for i, text in enumerate(asked)]
        else:
            rows = [{"prompt": t, "completion": "Paris is" + " fine" * (i % 4 + 1)} for i, t in enumerate(asked)]
        write_rows(file, rows)
    return str(file)
