"""Tiny models for the adapter's tests, of every architecture that it knows, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from ftengine.api import LoadedModel
from ftengine_builtins.strategies.adapter import Adapter, AdapterConfig
from ftengine_builtins.strategies.adapter_layers import Bottleneck

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 40}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}

MODELS: dict[str, Any] = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            **TEXT, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, eos_token_id=1,
            bos_token_id=1,
        ),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**TEXT, **LAYERS, num_key_value_heads=1)),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(
            **TEXT, d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=24, dropout_rate=0.0, decoder_start_token_id=0
        ),
    ),
    "bert": (BertForSequenceClassification, BertConfig(**TEXT, **LAYERS, **STILL)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**TEXT, **LAYERS, **STILL)),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(
            **TEXT, dim=16, n_layers=2, n_heads=2, hidden_dim=24, dropout=0.0, attention_dropout=0.0,
            seq_classif_dropout=0.0, num_labels=3,
        ),
    ),
    "vit": (ViTForImageClassification, ViTConfig(**LAYERS, **STILL, image_size=16, patch_size=8)),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck", num_labels=3,
        ),
    ),
    # Its blocks are wired in two ways under the same names, so no row describes them.
    "opt": (
        OPTForCausalLM,
        OPTConfig(
            **TEXT, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16,
            dropout=0.0, max_position_embeddings=32,
        ),
    ),
}  # fmt: skip

HEADS = {
    "gpt2": "causal-lm",
    "llama": "causal-lm",
    "opt": "causal-lm",
    "t5": "seq2seq-lm",
    "vit": "image-classification",
}
HEADS["resnet"] = HEADS["vit"]

KNOWN = [name for name in MODELS if name != "opt"]
GENERATING = ["gpt2", "llama", "t5"]


def opened(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoadedModel:
    """Build a model with random weights, the same every time; a classifier's head is fresh."""
    model_class, config = MODELS[name]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        module = model_class(config).to(dtype)
        if device != "meta":
            for parameter in module.parameters():  # so that a residual stream is no mere copy of its input
                nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    head = HEADS.get(name, "sequence-classification")
    fresh = ("classifier",) if hasattr(module, "classifier") else ()
    return LoadedModel(module.eval(), None, f"memory/{name}", head, new_modules=fresh)


def prepared(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Adapter, LoadedModel]:
    """Build a model and prepare it; the bottleneck is wide enough that no rectifier silences all of it."""
    if "reduction_factor" not in options and "start_from" not in options:
        options = {"bottleneck": 8, **options}
    loaded, strategy = opened(name, dtype), Adapter(AdapterConfig(**options))
    torch.manual_seed(1)
    strategy.prepare(loaded)
    return strategy, loaded


def batch(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return two examples with labels, the second one padded; the same every time."""
    generator = torch.Generator().manual_seed(1)
    kind = type(module).__name__
    if kind.endswith("ImageClassification"):
        dtype = next(module.parameters()).dtype
        return {
            "pixel_values": torch.randn(2, 3, 16, 16, generator=generator).to(dtype),
            "labels": torch.tensor([0, 2]),
        }
    ids = torch.randint(4, 40, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = torch.tensor([0, 2]) if kind.endswith("SequenceClassification") else ids
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def logits(module: nn.Module) -> torch.Tensor:
    """Return the logits of the batch in evaluation mode."""
    return module.eval()(**batch(module)).logits


def bottlenecks(module: nn.Module) -> dict[str, Bottleneck]:
    """Return the adapters by the path of the layer that holds them."""
    return {path.rpartition(".")[0]: part for path, part in module.named_modules() if isinstance(part, Bottleneck)}


@torch.no_grad()
def shake(module: nn.Module, seed: int = 2) -> None:
    """Give what trains random values, so that an adapter that starts as nothing does something."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
