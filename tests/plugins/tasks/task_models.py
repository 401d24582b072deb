"""Tiny models of the tasks beyond causal language modelling: true architectures, random weights."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tiny import CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

SIDE = 32
"""Pixels on a side of what the vision models read."""


def tiny_t5(folder: str | Path, **config: Any) -> Path:
    """Write a T5ForConditionalGeneration with a Unigram tokenizer that ends texts, as T5's does."""
    tokenizer = unigram_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return _write(T5ForConditionalGeneration, T5Config(**settings | config), tokenizer, folder)


def tiny_bart(folder: str | Path, **config: Any) -> Path:
    """Write a BartForConditionalGeneration, whose positions are learnt and therefore end."""
    tokenizer = unigram_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
        "forced_eos_token_id": None,
    }
    return _write(BartForConditionalGeneration, BartConfig(**settings | config), tokenizer, folder)


def tiny_vit(folder: str | Path, **config: Any) -> Path:
    """Write a ViTForImageClassification with a head for three classes of its own."""
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": SIDE,
        "patch_size": 8,
        "num_labels": 3,
    }
    return _write(ViTForImageClassification, ViTConfig(**settings | config), image_processor(), folder)


def tiny_resnet(folder: str | Path, **config: Any) -> Path:
    """Write a ResNetForImageClassification: convolutions and BatchNorm."""
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
    return _write(ResNetForImageClassification, ResNetConfig(**settings | config), image_processor(), folder)


def image_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Build a Unigram over the corpus's words and characters; the vocabulary is laid out by hand, so it stays."""
    special = ["<pad>", "</s>", "<unk>"]
    words = sorted({f"▁{word}" for line in CORPUS for word in line.split()})
    characters = sorted(set(string.printable.strip()) | {"▁"})
    pieces = [(piece, 0.0) for piece in special] + [(word, -5.0) for word in words] + [(c, -9.0) for c in characters]
    tokenizer = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=special.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _write(model_class: type, config: Any, processor: Any, folder: str | Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
