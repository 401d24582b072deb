"""Small models in folders, the same each time, with weights so large that every layer matters."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "initializer_range": 0.2,
}
WORDS = ["[PAD]", "[UNK]", "[EOS]", *(str(number) for number in range(20)), "what", "is", "it", "+", "?", "."]


def llama(folder: Path, **config: Any) -> Path:
    """Write a Llama with tied embeddings."""
    settings = SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": 2} | config
    return _write(folder, LlamaForCausalLM, LlamaConfig(**settings))


def bert(folder: Path) -> Path:
    """Write a BERT, whose linear layers have biases, with a head for two labels."""
    return _write(folder, BertForSequenceClassification, BertConfig(**SIZES, num_labels=2))


def gpt2(folder: Path) -> Path:
    """Write a model that has no nn.Linear but its head."""
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, n_positions=16, vocab_size=40, eos_token_id=2, bos_token_id=2)
    return _write(folder, GPT2LMHeadModel, config)


def qwen3_moe(folder: Path) -> Path:
    """Write a mixture of experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    settings = SIZES | {"num_key_value_heads": 2, "eos_token_id": 2} | experts
    return _write(folder, Qwen3MoeForCausalLM, Qwen3MoeConfig(**settings))


def _write(folder: Path, cls: Any, config: Any) -> Path:
    torch.manual_seed(0)
    module = cls(config)
    with torch.no_grad():  # biases matter as well
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    module.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
