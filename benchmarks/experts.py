"""A layer of experts with low-rank updates against the frozen layer and PEFT's `target_parameters`, in turn.

    python benchmarks/experts.py --width 512 --inner 512 --tokens 512 --dtype bfloat16

Prints JSON: the median of the processor's seconds, forward and backward, and each as a multiple of the frozen layer's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from ftengine.ops import ExpertMap, lowrank_experts


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 512), ("inner", 512), ("experts", 64), ("chosen", 8), ("tokens", 512), ("rank", 8)):
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    return options


class Block(nn.Module):
    """What PEFT wraps."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, *args: Tensor) -> Tensor:
        return self.experts(*args)


def layers(options: argparse.Namespace) -> dict[str, Callable[..., Tensor]]:
    dtype = getattr(torch, options.dtype)
    config = OlmoeConfig(
        hidden_size=options.width,
        intermediate_size=options.inner,
        num_experts=options.experts,
        num_experts_per_tok=options.chosen,
    )
    config._experts_implementation = "grouped_mm"

    def frozen() -> nn.Module:
        torch.manual_seed(0)
        experts = OlmoeExperts(config).to(dtype).requires_grad_(False)
        for weight in experts.parameters():
            nn.init.normal_(weight, std=0.02)
        return experts

    own: Any = frozen()

    def updated(weight: Tensor) -> ExpertMap:
        count, n_out, n_in = weight.shape
        a, b = torch.randn(count, options.rank, n_in), torch.randn(count, n_out, options.rank)
        return ExpertMap(weight, None, a.requires_grad_(), b.requires_grad_(), 0.1)

    up, down = updated(own.gate_up_proj), updated(own.down_proj)
    names = ["experts.gate_up_proj", "experts.down_proj"]
    theirs = get_peft_model(Block(frozen()), LoraConfig(r=options.rank, target_modules=[], target_parameters=names))

    def ours(p: float) -> Callable[..., Tensor]:
        return lambda x, chosen, shares: lowrank_experts(x, chosen, shares, up, down, own._apply_gate, p)

    return {"frozen": own, "ftengine": ours(0.0), "ftengine, dropout 0.05": ours(0.05), "PEFT": theirs}


def seconds(layer: Callable[..., Tensor], options: argparse.Namespace) -> float:
    x = torch.randn(options.tokens, options.width, dtype=getattr(torch, options.dtype)).requires_grad_()
    chosen = torch.rand(options.tokens, options.experts).topk(options.chosen, -1)[1]
    shares = torch.rand(chosen.shape).to(x.dtype).requires_grad_()
    begin = time.process_time()
    y = layer(x, chosen, shares)
    y.backward(torch.ones_like(y))
    return time.process_time() - begin


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, list[float]] = {}
    measured = layers(options)
    for _ in range(options.rounds + 1):
        for name, layer in measured.items():
            found.setdefault(name, []).append(seconds(layer, options))
    medians = {name: statistics.median(times[1:]) for name, times in found.items()}
    times = {name: {"seconds": value, "of frozen": value / medians["frozen"]} for name, value in medians.items()}
    print(json.dumps({**vars(options), "layers": times}, indent=2))


if __name__ == "__main__":
    main()
