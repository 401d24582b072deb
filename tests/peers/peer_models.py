"""Tiny models of real architectures, as ftengine loads them and as other programs do: from the same folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

from ftengine.api import Labels, LoadedModel, LoadRequest
from ftengine.plugins.registry import Registry

TEXT: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0}
LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
DECODER = TEXT | LAYERS | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
GPT2 |= {"eos_token_id": 2, "pad_token_id": 0}
T5 = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0}
BART = {"d_model": 32, "max_position_embeddings": 64, "eos_token_id": 2, "decoder_start_token_id": 2} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
GEMMA3 = DECODER | {"head_dim": 8, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
MODERN = {"classifier_pooling": "mean", "global_attn_every_n_layers": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SIDE = 32
"""Pixels on a side of an image."""


@dataclass(frozen=True)
class Architecture:
    """A model that one class of a library makes, what ftengine's loaders would say of it, and how it is filled."""

    label: str
    model: str
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    head: str = "causal-lm"
    new: tuple[str, ...] = ()
    library: str = "transformers"

    @property
    def reads_images(self) -> bool:
        return self.head == "image-classification"


def _classifier(label: str, model: str, config: str, settings: dict[str, Any], *new: str) -> Architecture:
    settings = settings | {"num_labels": 3}
    return Architecture(label, model, config, settings, "sequence-classification", new or ("classifier",))


def _images(label: str, model: str, settings: dict[str, Any], head: str, library: str = "transformers") -> Architecture:
    config = model.replace("ForImageClassification", "Config") if library == "transformers" else ""
    return Architecture(label, model, config, settings | {"num_labels": 3}, "image-classification", (head,), library)


ARCHITECTURES = {
    "llama": Architecture("Llama", "LlamaForCausalLM", "LlamaConfig", DECODER),
    "gpt2": Architecture("GPT-2", "GPT2LMHeadModel", "GPT2Config", GPT2),
    "qwen3": Architecture("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16}),
    "gemma3": Architecture("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3),
    "llama-classifier": _classifier("Llama, labels", "LlamaForSequenceClassification", "LlamaConfig", DECODER, "score"),
    "gpt2-classifier": _classifier("GPT-2, labels", "GPT2ForSequenceClassification", "GPT2Config", GPT2, "score"),
    "bert": _classifier("BERT", "BertForSequenceClassification", "BertConfig", TEXT | LAYERS),
    "bert-tokens": Architecture(
        "BERT, tokens",
        "BertForTokenClassification",
        "BertConfig",
        TEXT | LAYERS | {"num_labels": 3},
        "token-classification",
        ("classifier",),
    ),
    "roberta": _classifier(
        "RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", TEXT | LAYERS | {"pad_token_id": 1}
    ),
    "distilbert": _classifier(
        "DistilBERT", "DistilBertForSequenceClassification", "DistilBertConfig", TEXT | DISTILBERT
    ),
    "modernbert": _classifier(
        "ModernBERT", "ModernBertForSequenceClassification", "ModernBertConfig", TEXT | LAYERS | MODERN
    ),
    "t5": Architecture("T5", "T5ForConditionalGeneration", "T5Config", TEXT | T5, "seq2seq-lm"),
    "bart": Architecture("BART", "BartForConditionalGeneration", "BartConfig", TEXT | BART, "seq2seq-lm"),
    # AdapterHub's others
    "mistral": Architecture("Mistral", "MistralForCausalLM", "MistralConfig", DECODER),
    "qwen2": Architecture("Qwen2", "Qwen2ForCausalLM", "Qwen2Config", DECODER),
    **{
        name: _classifier(name, f"{kind}ForSequenceClassification", f"{kind}Config", TEXT | LAYERS | more, *new)
        for name, kind, more, *new in (
            ("electra", "Electra", {"embedding_size": 32}, "classifier"),
            ("deberta-v2", "DebertaV2", {"pooler_hidden_size": 32}, "pooler", "classifier"),
            ("xlm-roberta", "XLMRoberta", {"pad_token_id": 1}, "classifier"),
        )
    },
    "vit": _images(
        "ViT",
        "ViTForImageClassification",
        LAYERS | {"image_size": SIDE, "patch_size": 8, "num_labels": 3},
        "classifier",
    ),
    "resnet": _images("ResNet", "ResNetForImageClassification", RESNET | {"num_labels": 3}, "classifier"),
    "timm": _images("timm's ResNet", "test_resnet", {}, "fc", "timm"),
    "torchvision": _images("torchvision's ResNet", "resnet18", {}, "fc", "torchvision"),
}
"""By name; each is small enough to be built anew for each use."""


def fresh(name: str, *, without_head: bool = False) -> nn.Module:
    """Build a base, the same every time, in evaluation mode; `without_head` with zeros where a head is new."""
    about = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _built(about)
        for path, parameter in module.named_parameters():
            if parameter.ndim > 1 and about.library == "transformers":
                nn.init.normal_(parameter, std=0.2)  # so large that every layer matters
            if without_head and path.startswith(about.new or ("-",)):
                nn.init.zeros_(parameter)
    return module.eval()


def _built(about: Architecture) -> nn.Module:
    if about.library == "timm":
        import timm

        return timm.create_model(about.model, num_classes=3)
    if about.library == "torchvision":
        import torchvision

        return torchvision.models.get_model(about.model, num_classes=3)
    return getattr(transformers, about.model)(getattr(transformers, about.config)(**about.settings))


def loaded(name: str) -> LoadedModel:
    """Return a base as a loader of ftengine would; of timm and torchvision the loader's own, for its processor."""
    about, module = ARCHITECTURES[name], fresh(name)
    if about.library != "transformers":
        loader = Registry().build("loader", {"name": about.library, "weights": "random"}, "model.loader")
        labels = Labels("single", ("a", "b", "c"))
        found = loader.load(LoadRequest(f"{about.library}://{about.model}", about.head, labels))
        found.module.load_state_dict(module.state_dict())
        return found
    limit = about.settings.get("max_position_embeddings", about.settings.get("n_positions"))
    return LoadedModel(module, None, name, about.head, new_modules=about.new, max_length=limit)


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Return a batch of two, one of them shorter where that means the same in every program."""
    about, generator = ARCHITECTURES[name], torch.Generator().manual_seed(1)
    if about.reads_images:
        side = 64 if about.library == "torchvision" else SIDE
        return {("x" if about.library != "transformers" else "pixel_values"): torch.randn(
            2, 3, side, side, generator=generator
        )}  # fmt: skip
    ids = torch.randint(4, 60, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    if about.new != ("score",):  # PEFT's prompts move the last token, which these read
        ids[1, 6:], mask[1, 6:] = about.settings.get("pad_token_id", 0), 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if about.head == "seq2seq-lm":
        batch["decoder_input_ids"] = torch.randint(4, 60, (2, 5), generator=generator)
    return batch


@torch.no_grad()
def outputs(name: str, module: nn.Module) -> torch.Tensor:
    """Return the logits of the batch by the module's own forward, for real tokens alone."""
    batch = inputs(name)
    result = module.eval()(*batch.values()) if "x" in batch else module.eval()(**batch).logits
    if ARCHITECTURES[name].head in ("causal-lm", "token-classification"):
        result = result[:, -batch["input_ids"].shape[1] :]  # PEFT's prompts show in front of them
        result = result[batch["attention_mask"].bool()]
    return result


@torch.no_grad()
def shake(module: nn.Module) -> None:
    """Give all that trains other values, so that nothing starts as what it does not change."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
