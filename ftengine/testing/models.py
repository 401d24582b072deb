"""Tiny models with random weights, made in code: the libraries' own architectures and tokenizers.

Each function returns (module, processor), the same for the same seed; `config` overrides fields of the architecture's
configuration. Nothing is downloaded, and nothing is read.
"""

from __future__ import annotations

import string
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertModel,
    BertTokenizer,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetForImageClassification,
    T5ForConditionalGeneration,
    T5Tokenizer,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.pytorch_utils import Conv1D

Made: TypeAlias = tuple[PreTrainedModel, Any]
"""A model in evaluation mode, and its tokenizer or image processor."""

SIDE = 32
"""Pixels on a side of what the vision models read."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = (
    "user assistant system\n",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "How do I reset my password? Open the settings, choose the account, and follow the link.",
    "What is the capital of France? The capital of France is Paris.",
    "Good morning! How are you today? I am fine, thank you, and what can I do for you?",
    "The film was wonderful, the acting was terrible, and the music was neither good nor bad.",
    "Shares rose after the company said that its profits had grown by 12 per cent this year.",
    "The match ended in a draw after a late goal in the second half of the game.",
    "My computer does not start. Is the power cable connected? Try to turn it off and on again.",
)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def tiny_llama(*, seed: int = 0, **config: Any) -> Made:
    """Make a LlamaForCausalLM with a ChatML tokenizer."""
    tokenizer = byte_level_tokenizer(pad_token="<|endoftext|>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 512}
    special = {"tie_word_embeddings": True, "pad_token_id": tokenizer.pad_token_id, **_ends(tokenizer)}
    return _build(LlamaForCausalLM, SMALL | sizes | special | config, tokenizer, seed)


def tiny_gpt2(*, pad_token: str | None = "<|endoftext|>", seed: int = 0, **config: Any) -> Made:
    """Make a GPT2LMHeadModel, whose linear layers are Conv1D; with `pad_token=None` no padding token, as in GPT-2."""
    tokenizer = byte_level_tokenizer(pad_token=pad_token)
    settings = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256, **_ends(tokenizer)}
    return _build(GPT2LMHeadModel, settings | config, tokenizer, seed)


def tiny_bert(model: type[PreTrainedModel] = BertModel, *, seed: int = 0, **config: Any) -> Made:
    """Make a BertModel with its pooler and no task head, or another model of that family; a WordPiece tokenizer."""
    return _build(model, {**SMALL, "max_position_embeddings": 128, **config}, word_piece_tokenizer(), seed)


def tiny_t5(*, seed: int = 0, **config: Any) -> Made:
    """Make a T5ForConditionalGeneration with a Unigram tokenizer that ends texts, as T5's does."""
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    return _build(T5ForConditionalGeneration, settings | config, unigram_tokenizer(), seed)


def tiny_vit(*, seed: int = 0, **config: Any) -> Made:
    """Make a ViTForImageClassification with a head for three classes of its own."""
    settings = {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 8, "num_labels": 3}
    return _build(ViTForImageClassification, SMALL | settings | config, image_processor(), seed)


def tiny_resnet(*, seed: int = 0, **config: Any) -> Made:
    """Make a ResNetForImageClassification: convolutions and BatchNorm."""
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
    return _build(ResNetForImageClassification, settings | config, image_processor(), seed)


def byte_level_tokenizer(*, pad_token: str | None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with ChatML's special tokens; any text round-trips through it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token=pad_token,
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def word_piece_tokenizer() -> BertTokenizer:
    """Build BERT's tokenizer, uncased, over the corpus's words and characters.

    The vocabulary is fixed, as the trainer numbers its pieces differently from run to run.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(" ".join(CORPUS)))
    words = sorted({word for word, _ in split})
    characters = sorted(set(string.ascii_lowercase + string.digits) | set("".join(words)))
    pieces = special + characters + [f"##{c}" for c in characters] + [word for word in words if len(word) > 1]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def unigram_tokenizer() -> T5Tokenizer:
    """Build T5's tokenizer over the corpus's words and characters, with a fixed vocabulary."""
    special = ["<pad>", "</s>", "<unk>"]
    words = sorted({f"▁{word}" for line in CORPUS for word in line.split()})
    characters = sorted(set(string.printable.strip()) | {"▁"})
    pieces = [(piece, 0.0) for piece in special] + [(word, -5.0) for word in words] + [(c, -9.0) for c in characters]
    return T5Tokenizer(vocab=list(dict(pieces).items()), extra_ids=0, model_max_length=512)


def image_processor() -> ViTImageProcessorPil:
    """Build an image processor that resizes images to SIDE pixels and normalises them, like ViT's."""
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


@torch.no_grad()
def sensitise(module: nn.Module, seed: int = 0) -> None:
    """Draw a model's weights anew, large enough to affect the outputs: small weights and zero biases hide faults.

    Matrices have the variance 2 / inputs (He et al. 2015, arXiv:1502.01852), biases a standard deviation of 0.3, scales
    of norms are 1 ± 0.3, embeddings have 0.3; statistics of BatchNorm are as after some training.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        normalises = "norm" in type(part).__name__.lower()
        for name, parameter in part.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.copy_((1 if normalises and name == "weight" else 0) + 0.3 * noise)
            elif isinstance(part, nn.Embedding) or name != "weight":
                parameter.copy_(0.3 * noise)
            else:
                inputs = len(parameter) if isinstance(part, Conv1D) else parameter[0].numel()
                parameter.copy_(noise * (2 / inputs) ** 0.5)
        if isinstance(part, nn.BatchNorm2d):
            mean, variance = part.get_buffer("running_mean"), part.get_buffer("running_var")
            mean.copy_(0.3 * torch.randn(part.num_features, generator=generator))
            variance.copy_(0.5 + torch.rand(part.num_features, generator=generator))


def _ends(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def _build(model: type[PreTrainedModel], settings: dict[str, Any], processor: Any, seed: int) -> Made:
    words = {"vocab_size": len(processor)} if hasattr(processor, "get_vocab") else {}
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(seed)
        config: Any = model.config_class
        return model(config(**{**words, "dtype": "float32", **settings})).eval(), processor
