"""Tiny models that virtual tokens go into: random weights in memory, real architectures, real tokenizers."""

from __future__ import annotations

from typing import Any

import torch
from tiny import byte_level_tokenizer, word_piece_tokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from ftengine.api import LoadedModel
from ftengine.plugins.registry import Registry

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT2: dict[str, Any] = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
LLAMA: dict[str, Any] = LAYERS | {"hidden_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 4, "d_ff": 64, "num_layers": 2, "num_heads": 4}
BART: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 64} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
BERT: dict[str, Any] = LAYERS | {"hidden_size": 32, "max_position_embeddings": 64, "num_labels": 3}
DISTILBERT: dict[str, Any] = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "num_labels": 3}

MODELS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2, "causal-lm"),
    "llama": (LlamaForCausalLM, LlamaConfig, LLAMA, "causal-lm"),
    "t5": (T5ForConditionalGeneration, T5Config, T5, "seq2seq-lm"),
    "bart": (BartForConditionalGeneration, BartConfig, BART, "seq2seq-lm"),
    "bert": (BertForSequenceClassification, BertConfig, BERT, "sequence-classification"),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, BERT, "sequence-classification"),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig, DISTILBERT, "sequence-classification"),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig,
        BERT | {"classifier_pooling": "mean", "global_attn_every_n_layers": 2},
        "sequence-classification",
    ),
    "gpt2-classifier": (GPT2ForSequenceClassification, GPT2Config, GPT2 | {"num_labels": 3}, "sequence-classification"),
    "llama-classifier": (
        LlamaForSequenceClassification,
        LlamaConfig,
        LLAMA | {"num_labels": 3},
        "sequence-classification",
    ),
    "bert-tokens": (BertForTokenClassification, BertConfig, BERT, "token-classification"),
}
"""Name -> model class, config class, options, head."""

DECODERS = ["gpt2", "llama", "gpt2-classifier", "llama-classifier"]
TEXT = "the film was"
NEW = {"sequence-classification": ("classifier", "score"), "token-classification": ("classifier",)}


def build(name: str, device: str = "cpu", **options: Any) -> LoadedModel:
    """Build a model, the same every time; `options` override its config."""
    model_class, config_class, settings, head = MODELS[name]
    tokenizer = byte_level_tokenizer(pad_token="<|endoftext|>") if "bert" not in name else word_piece_tokenizer()
    settings = {"vocab_size": 180 if "bert" in name else 400, "pad_token_id": 0, **settings, **options}
    if head == "seq2seq-lm":
        settings |= {"decoder_start_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        module = model_class(config_class(**settings)).eval()
        if device != "meta":
            # As trained ones have: embeddings and layers whose effect a test can see.
            for parameter in module.parameters():
                parameter.data.mul_(3 if parameter.ndim > 1 and name not in ("t5",) else 1)
    new = tuple(child for child, _ in module.named_children() if child in NEW.get(head, ()))
    limit = getattr(module.config, "max_position_embeddings", None)
    return LoadedModel(module, tokenizer, "", head, new_modules=new, max_length=limit)


def tokens(rows: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    """Return (rows, length) ids without padding."""
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def ones(ids: torch.Tensor) -> torch.Tensor:
    """Return the attention mask of ids without padding."""
    return torch.ones_like(ids)


def padded(ids: torch.Tensor, keep: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, mask) in which the second row has `keep` tokens and padding (id 0) on one side."""
    ids, mask, gone = ids.clone(), torch.ones_like(ids), ids.shape[1] - keep
    row = torch.cat([torch.zeros(gone, dtype=torch.long), ids[1, :keep]])
    ids[1], mask[1, :gone] = row, 0
    if side == "right":
        ids[1], mask[1] = ids[1].roll(-gone), mask[1].roll(-gone)
    return ids, mask


def inputs(loaded: LoadedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Return arguments for a forward pass; an encoder-decoder also gets something to say."""
    given = {"input_ids": ids, "attention_mask": ones(ids) if mask is None else mask}
    if loaded.head == "seq2seq-lm":
        given["decoder_input_ids"] = tokens(len(ids), 4, seed=3)
    return given


def with_(strategy: str, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedModel:
    """Return a model with a prompt or a prefix of five virtual tokens, the same every time."""
    loaded = build(name)
    loaded.module.to(dtype)
    torch.manual_seed(0)
    Registry().build("strategy", {"name": strategy, "virtual_tokens": 5} | options, "strategy").prepare(loaded)
    return loaded


@torch.no_grad()
def logits(loaded: LoadedModel, **given: Any) -> torch.Tensor:
    """Return the logits in evaluation mode."""
    return loaded.module.eval()(**given).logits


def answered(module: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> tuple[list, torch.Tensor]:
    """Return 6 generated tokens a row, and the logits (rows, 6, vocabulary) that they were chosen by."""
    result = module.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    return result.sequences[:, -6:].tolist(), torch.stack(result.logits, dim=1)
