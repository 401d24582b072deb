"""Tiny mixtures of experts, one of each way in which transformers keeps and routes experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine_builtins.strategies.expert_layers import expert_modules

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
}
FOUR = {"num_experts_per_tok": 2}
LATE = {"moe_intermediate_size": 12, "first_k_dense_replace": 1}
"""The first layer has no experts."""
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MIXTURES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": FOUR | {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 12, "norm_topk_prob": True},
    "GptOss": FOUR | {"head_dim": 8, "num_local_experts": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "Mixtral": FOUR | {"num_local_experts": 4},
    "Olmoe": FOUR | {"num_experts": 4},
    "DeepseekV3": FOUR | LATE | LATENT | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1}
    | {"num_key_value_heads": 4},
    "Glm4Moe": FOUR | LATE | {"n_routed_experts": 4, "head_dim": 8},
    "GraniteMoe": FOUR | {"num_local_experts": 4},
}  # fmt: skip
"""Settings by transformers' name."""

TOKENS = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def mixture(kind: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Build a mixture, the same every time, whose every weight matters."""
    settings = SIZES | TOKENS | MIXTURES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**settings)
        module = getattr(transformers, f"{kind}ForCausalLM")(config)
        for parameter in module.parameters():
            if parameter.ndim > 1 or (parameter.ndim == 1 and not parameter.any()):
                nn.init.normal_(parameter, std=0.2)
    return LoadedModel(module.to(dtype).eval(), None, kind, "causal-lm")


def shaken(module: nn.Module) -> nn.Module:
    """Give all that trains other values, so that nothing starts as what it does not change."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1)
    return module


def ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(4, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(module: nn.Module) -> Tensor:
    return module.eval()(input_ids=ids()).logits


def gradients(module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the loss by name."""
    module.zero_grad()
    module(input_ids=batch, labels=batch).loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad and p.grad is not None}


Routing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a token's experts and their shares to others."""
ROUTINGS: dict[str, Routing] = {
    "one is not used": lambda chosen, shares: (torch.stack([chosen[:, 0] % 2, chosen[:, 0] % 2 + 1], 1), shares),
    "all on one": lambda chosen, shares: (torch.full_like(chosen[:, :1], 2), shares[:, :1]),
    "its own": lambda chosen, shares: (chosen, shares),
}


@contextmanager
def routed(module: nn.Module, routing: Routing) -> Iterator[None]:
    """Send tokens to other experts for a while."""
    paths = {path.replace(".base_layer", "") for path in expert_modules(module)}

    def hook(part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0], *routing(args[1], args[2]))

    handles = [module.get_submodule(path).register_forward_pre_hook(hook) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
