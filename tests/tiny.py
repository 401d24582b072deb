"""Tiny models that are real in kind: true architectures and true tokenizers, random weights.

Each function writes a complete transformers folder (safetensors, config, its tokenizer or image processor), the same
bytes for the same seed, in well under two seconds.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
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


def tiny_llama(folder: str | Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a LlamaForCausalLM with a ChatML tokenizer; `config` overrides fields of LlamaConfig."""
    tokenizer = byte_level_tokenizer(pad_token="<|endoftext|>")
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _write(LlamaForCausalLM, LlamaConfig, settings | config, tokenizer, folder, seed)


def tiny_gpt2(folder: str | Path, *, pad_token: str | None = "<|endoftext|>", seed: int = 0, **config: Any) -> Path:
    """Write a GPT2LMHeadModel (its linear maps are Conv1D); `pad_token=None` leaves it out, as GPT-2 does."""
    tokenizer = byte_level_tokenizer(pad_token=pad_token)
    settings = {
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return _write(GPT2LMHeadModel, GPT2Config, settings | config, tokenizer, folder, seed)


def tiny_bert(folder: str | Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a BertModel with its pooler and no task head, and a WordPiece tokenizer."""
    tokenizer = word_piece_tokenizer()
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _write(BertModel, BertConfig, settings | config, tokenizer, folder, seed)


def tiny_t5(folder: str | Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a T5ForConditionalGeneration with a Unigram tokenizer that ends texts, as T5's does."""
    tokenizer = unigram_tokenizer()
    settings = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return _write(T5ForConditionalGeneration, T5Config, settings | config, tokenizer, folder, seed)


def tiny_vit(folder: str | Path, *, seed: int = 0, **config: Any) -> Path:
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
    return _write(ViTForImageClassification, ViTConfig, settings | config, image_processor(), folder, seed)


def tiny_resnet(folder: str | Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a ResNetForImageClassification: convolutions and BatchNorm."""
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
    return _write(ResNetForImageClassification, ResNetConfig, settings | config, image_processor(), folder, seed)


def byte_level_tokenizer(*, pad_token: str | None, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with ChatML's special tokens; any text round-trips through it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
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


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Build an uncased WordPiece over the corpus's words and characters; it adds [CLS] and [SEP], as BERT's does.

    The vocabulary is laid out by hand: the trainer numbers its pieces differently from run to run.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(" ".join(CORPUS)))
    words = sorted({word for word, _ in words})
    characters = sorted(set(string.ascii_lowercase + string.digits) | set("".join(words)))
    pieces = special + characters + [f"##{c}" for c in characters] + [word for word in words if len(word) > 1]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


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


def image_processor() -> ViTImageProcessorPil:
    """Build what resizes images to SIDE pixels and normalises them, as ViT's does."""
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


def _write(
    model_class: type[PreTrainedModel],
    config_class: type[PreTrainedConfig],
    settings: dict[str, Any],
    processor: Any,
    folder: str | Path,
    seed: int,
) -> Path:
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(seed)
        words = {"vocab_size": len(processor)} if hasattr(processor, "get_vocab") else {}
        model = model_class(config_class(**{**words, "dtype": "float32", **settings}))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
