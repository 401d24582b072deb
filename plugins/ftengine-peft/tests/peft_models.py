"""Small models for the tests, the same each time, with weights so large that every layer matters."""

import torch
from torch import nn
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


class PackedLinear(nn.Linear):
    """A linear layer with two 4-bit codes a byte, or with 8-bit codes; w = (code − 8) / 32."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        codes = (linear.weight.detach() * 32 + 8).round().clamp(0, 15).to(torch.uint8)
        packed = codes.to(torch.int8) if bits == 8 else (codes[:, ::2] + 16 * codes[:, 1::2]).reshape(-1, 1)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.weight
        if codes.dtype == torch.uint8:
            codes = torch.stack([codes % 16, codes // 16], -1).view(self.out_features, self.in_features)
        return x @ ((codes.float() - 8) / 32).T


def load_packed(bits: int, meta: bool = False) -> api.LoadedModel:
    loaded = load_llama()
    for path, layer in list(loaded.module.named_modules()):
        if isinstance(layer, nn.Linear) and path != "lm_head":
            loaded.module.set_submodule(path, PackedLinear(layer, bits))
    loaded.module.to("meta" if meta else "cpu")
    return loaded


def load_bert() -> api.LoadedModel:
    """A classifier whose head is new."""
    return api.LoadedModel(bert(), None, "bert", "sequence-classification", new_modules=("classifier",))


def load_gpt2() -> api.LoadedModel:
    """A model whose linear maps are Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, n_positions=16, vocab_size=64, initializer_range=0.2)
    return api.LoadedModel(GPT2LMHeadModel(config), None, "gpt2", "causal-lm")
