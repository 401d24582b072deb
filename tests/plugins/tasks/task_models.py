"""A tiny model of the tasks beyond causal language modelling that no other folder's tests need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import unigram_tokenizer
from transformers import BartConfig, BartForConditionalGeneration


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BartForConditionalGeneration(BartConfig(**settings | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
