"""Mixtures of experts in llama.cpp's GGUF: one tensor (E, …) for all experts, where transformers saves each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

ARCHITECTURES = {
    "MixtralForCausalLM": "llama",
    "OlmoeForCausalLM": "olmoe",
    "Qwen3MoeForCausalLM": "qwen3moe",
}
"""Classes of transformers, with llama.cpp's names of their architectures."""

SHARES = {"olmoe": False, "qwen3moe": True}
"""Whether llama.cpp divides the chosen experts' shares by their sum: it does as the architecture's own models do."""

ROUTER = re.compile(r"\.gate\.weight$")
"""Name of a router's weight, which stays in float32, as in llama.cpp's own conversion."""

_ONE = re.compile(r"(?P<layer>.+\.experts)\.(?P<expert>\d+)(?P<rest>\..+)")


def faults(name: str, config: Any) -> dict[str, bool]:
    """Return what llama.cpp computes otherwise than such a model, and whether a configuration has it."""
    if name not in ARCHITECTURES:
        return {}
    own = SHARES.get(ARCHITECTURES[name])
    heads = config.num_attention_heads != config.num_key_value_heads
    dense = getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1
    return {
        f"norm_topk_prob {not own}": own is not None and config.norm_topk_prob is not own,
        "layers without experts": bool(dense),
        "fewer heads of keys than of queries": name == "OlmoeForCausalLM" and heads,
        "clip_qkv": getattr(config, "clip_qkv", None) is not None,
    }


def add_numbers(writer: Any, config: Any) -> None:
    """Write how many experts there are, how many a token passes, and how wide they are."""
    if (experts := getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)) is None:
        return
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)


def stacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a folder's tensors with those of all experts of a layer in one, by a name without the expert's number."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    rest: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if (match := _ONE.fullmatch(name)) is None:
            rest[name] = tensor
        else:
            parts.setdefault(match["layer"] + match["rest"], {})[int(match["expert"])] = tensor
    return rest | {name: np.stack([own[i] for i in range(len(own))]) for name, own in parts.items()}
