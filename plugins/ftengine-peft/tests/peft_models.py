"""Small models for the tests, the same each time, with weights so large that every layer matters."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from ftengine import api

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
LM_BATCH, LABEL_BATCH = BATCH | {"labels": IDS}, BATCH | {"labels": torch.tensor([0, 2])}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "initializer_range": 0.2,
}


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied))


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))


def load_llama(tied: bool = False) -> api.LoadedModel:
    return api.LoadedModel(llama(tied), None, "llama", "causal-lm")


def load_bert() -> api.LoadedModel:
    """A classifier whose head is new."""
    return api.LoadedModel(bert(), None, "bert", "sequence-classification", new_modules=("classifier",))


def load_gpt2() -> api.LoadedModel:
    """A model whose linear maps are Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, n_positions=16, vocab_size=64, initializer_range=0.2)
    return api.LoadedModel(GPT2LMHeadModel(config), None, "gpt2", "causal-lm")
