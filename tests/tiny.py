"""The tiny models of `ftengine.testing`, each written as a complete transformers folder.

The same bytes for the same seed, in well under two seconds. `config` overrides fields of the architecture's
configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftengine.testing import models
from ftengine.testing.models import (
    CORPUS,
    SIDE,
    byte_level_tokenizer,
    image_processor,
    unigram_tokenizer,
    word_piece_tokenizer,
)

__all__ = ["CORPUS", "SIDE", "byte_level_tokenizer", "image_processor", "unigram_tokenizer", "word_piece_tokenizer"]


def tiny_llama(folder: str | Path, **config: Any) -> Path:
    return write(folder, *models.tiny_llama(**config))


def tiny_gpt2(folder: str | Path, **config: Any) -> Path:
    return write(folder, *models.tiny_gpt2(**config))


def tiny_bert(folder: str | Path, **config: Any) -> Path:
    return write(folder, *models.tiny_bert(**config))


def tiny_t5(folder: str | Path, **config: Any) -> Path:
    return write(folder, *models.tiny_t5(**config))


def tiny_vit(folder: str | Path, **config: Any) -> Path:
    return write(folder, *models.tiny_vit(**config))


def tiny_resnet(folder: str | Path, **config: Any) -> Path:
    return write(folder, *models.tiny_resnet(**config))


def write(folder: str | Path, model: Any, processor: Any) -> Path:
    """Write a model and its processor."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
