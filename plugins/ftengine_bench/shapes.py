"""The layers that are measured: those of known models, or any."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ftengine.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Shape:
    """A frozen linear layer and the tokens that it sees: x (M, K), weight (N, K).

    Args:
        m: tokens.
        k: inputs.
        n: outputs.
        layers: names of the layers of a block that have this shape; none for a shape given by hand.
        transposed: the weight is stored as (K, N), as GPT-2's Conv1D stores it.
    """

    m: int
    k: int
    n: int
    layers: tuple[str, ...] = ()
    transposed: bool = False

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


Layers = tuple[tuple[str, int, int], ...]


def _llama(d: int, kv: int, ff: int) -> Layers:
    """Return the layers of a block of this hidden size, width of keys and values, and intermediate size."""
    attention = ("q_proj", d, d), ("k_proj", d, kv), ("v_proj", d, kv), ("o_proj", d, d)
    return *attention, ("gate_proj", d, ff), ("up_proj", d, ff), ("down_proj", ff, d)


PRESETS: dict[str, Layers] = {
    # huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json: hidden_size 576, intermediate_size 1536, 9 heads of 64,
    # 3 of them for keys and values.
    "smollm2-135m": _llama(576, 192, 1536),
    # huggingface.co/meta-llama/Meta-Llama-3-8B: hidden_size 4096, intermediate_size 14336, 32 heads of 128, 8 of them
    # for keys and values.
    "llama3-8b": _llama(4096, 1024, 14336),
    # huggingface.co/google-bert/bert-base-uncased: hidden_size 768, intermediate_size 3072.
    "bert-base": (
        ("query", 768, 768),
        ("key", 768, 768),
        ("value", 768, 768),
        ("attention.output.dense", 768, 768),
        ("intermediate.dense", 768, 3072),
        ("output.dense", 3072, 768),
    ),
    # huggingface.co/openai-community/gpt2: n_embd 768; every layer is a Conv1D.
    "gpt2": (
        ("attn.c_attn", 768, 2304),
        ("attn.c_proj", 768, 768),
        ("mlp.c_fc", 768, 3072),
        ("mlp.c_proj", 3072, 768),
    ),
}
"""Every linear layer of one transformer block, (name, K, N), from the published configuration."""

TRANSPOSED = {"gpt2"}
"""Presets whose weights are stored as (K, N)."""


def preset_shapes(name: str, tokens: Iterable[int]) -> list[Shape]:
    """Return the shapes of a preset, each once, for every number of tokens.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}. There are {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    layers: dict[tuple[int, int], list[str]] = {}
    for layer, k, n in PRESETS[name]:
        layers.setdefault((k, n), []).append(layer)
    return [Shape(m, k, n, tuple(names), name in TRANSPOSED) for m in tokens for (k, n), names in layers.items()]


def parse_shape(text: str) -> Shape:
    """Read a shape such as 512x2048x2048.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)[x×]([1-9]\d*)", text.strip())
    if not found:
        raise InputError(
            f"shape {text!r}: write tokens x inputs x outputs (MxKxN), each at least 1, for example 512x2048x2048."
        )
    m, k, n = map(int, found.groups())
    return Shape(m, k, n)
