"""Fingerprints: whether a base model and its processor are those that something was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import xxhash
from torch import nn


@torch.no_grad()
def fingerprint_weights(module: nn.Module, exclude: Iterable[str] = ()) -> str:
    """Return a hash that identifies base weights, whatever dtype they were loaded in.

    Names, shapes and every element, rounded to bfloat16, enter the hash. It is XXH3, of 2 GB a second, where SHA-256
    reads 0.4: it is to notice another base, not one that somebody made to be taken for this one.

    Args:
        module: the model before a strategy touched it.
        exclude: names of modules initialised afresh, which differ from run to run.
    """
    digest = xxhash.xxh3_128()
    skipped = tuple(f"{name}." for name in exclude)
    for name, tensor in sorted(module.named_parameters()):
        if name.startswith(skipped):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        values = tensor.detach().reshape(-1)
        if values.is_floating_point():
            values = values.to(torch.bfloat16).view(torch.int16)
        digest.update(values.cpu().numpy().data)
    return digest.hexdigest()


def fingerprint_processor(processor: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template (or of a processor's settings)."""
    digest = hashlib.sha256()
    if hasattr(processor, "get_vocab"):
        for token, index in sorted(processor.get_vocab().items()):
            digest.update(f"{token}\0{index}\0".encode("utf-8", "surrogatepass"))
        digest.update(str(getattr(processor, "chat_template", None)).encode())
    elif hasattr(processor, "to_dict"):
        digest.update(repr(sorted(processor.to_dict().items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()[:32]
