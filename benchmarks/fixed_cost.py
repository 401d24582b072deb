"""What a low-rank layer costs whatever its size, and what layers of one input save as a group.

Fixed cost: forward and backward of tiny layers, five in a row as in a network, less the frozen layers', a layer; the
time of the thread, the least of many repetitions, so that other programs count as little as may be. Groups: time over
the frozen layers of the same input, of lowrank_linears, of each layer alone, and of PEFT's layers; all take turns in
one process.

    python benchmarks/fixed_cost.py
    python benchmarks/fixed_cost.py --json benchmarks/results/DEVICE/fixed_cost.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ftengine.ops import lowrank_linear, lowrank_linears
from ftengine.run.environment import hardware, versions
from ftengine_bench.timing import clock_of, measure, paired_ratio

GROUPS = {"q, k, v": (576, (576, 192, 192)), "gate, up": (576, (1536, 1536))}
"""Inputs and outputs of SmolLM2-135M's layers that read one input."""

SCALE, DEPTH = 2.0, 5


def fixed_cost(dtype: torch.dtype, p: float, seconds: float) -> float:
    """Return microseconds a layer."""
    m, size, rank = 4, 16, 4
    x, dy = torch.randn(m, size, dtype=dtype, requires_grad=True), torch.randn(m, size, dtype=dtype)
    weight = torch.randn(size, size).div(4).to(dtype)
    a = [torch.randn(rank, size, requires_grad=True) for _ in range(DEPTH)]
    b = [torch.zeros(size, rank, requires_grad=True) for _ in range(DEPTH)]

    def run(layer: Callable[[Tensor, int], Tensor], *factors: Tensor) -> None:
        y = x
        for i in range(DEPTH):
            y = layer(y, i)
        torch.autograd.grad(y, (x, *factors), dy)

    actions = {
        "frozen": lambda: run(lambda x, i: linear(x, weight)),
        "ours": lambda: run(lambda x, i: lowrank_linear(x, weight, None, a[i], b[i], SCALE, p), *a, *b),
    }
    least = dict.fromkeys(actions, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, action in random.sample(list(actions.items()), len(actions)):
            start = time.thread_time()
            action()
            least[name] = min(least[name], time.thread_time() - start)
    return 1e6 * (least["ours"] - least["frozen"]) / DEPTH


def group_overheads(name: str, m: int, rank: int, dtype: torch.dtype, p: float, seconds: float) -> dict[str, float]:
    """Return time over the frozen layers' by provider, forward and backward."""
    k, outputs = GROUPS[name]
    x = torch.randn(m, k, dtype=dtype, requires_grad=True)
    weights = [torch.randn(n, k).div(k**0.5).to(dtype) for n in outputs]
    dys = [torch.randn(m, n, dtype=dtype) for n in outputs]
    a = [torch.randn(rank, k).div(k**0.5).requires_grad_() for _ in outputs]
    b = [torch.randn(n, rank).div(rank**0.5).requires_grad_() for n in outputs]
    scales, biases = [SCALE] * len(outputs), [None] * len(outputs)
    layers = list(zip(weights, biases, a, b, scales, strict=True))

    def run(call: Callable[[], list[Tensor] | tuple[Tensor, ...]], *factors: Tensor) -> Callable[[], None]:
        return lambda: torch.autograd.grad(call(), (x, *factors), dys)

    calls = {
        "frozen": run(lambda: [linear(x, weight) for weight in weights]),
        "alone": run(lambda: [lowrank_linear(x, *layer, p) for layer in layers], *a, *b),
        "group": run(lambda: lowrank_linears(x, weights, biases, a, b, scales, p), *a, *b),
    }
    try:
        wrapped = [_peft(weight, rank, p) for weight in weights]
    except ImportError:
        pass
    else:
        calls["peft"] = run(lambda: [layer(x) for layer in wrapped], *chain(*map(_factors, wrapped)))
    times = measure({name: [call] for name, call in calls.items()}, clock_of("cpu"), seconds)
    taken = {name: [parts[0] for parts in repetitions] for name, repetitions in times.items()}
    return {name: paired_ratio(values, taken["frozen"]) for name, values in taken.items()}


def _peft(weight: Tensor, rank: int, p: float) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    n, k = weight.shape
    base = nn.Sequential(nn.Linear(k, n, bias=False, dtype=weight.dtype))
    base[0].weight = nn.Parameter(weight, requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), lora_dropout=p, target_modules=["0"])
    return get_peft_model(base, config, autocast_adapter_dtype=False).train().base_model.model[0]


def _factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="that a group sees (default: 512)")
    parser.add_argument("--rank", type=int, default=8, help="of each layer (default: 8)")
    parser.add_argument("--dropout", type=float, default=0.05, help="probability (default: 0.05)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of x and the weights")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each provider (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    rows = []
    for dtype in (getattr(torch, name) for name in arguments.dtypes.split(",")):
        for p in (0.0, arguments.dropout):
            cost = fixed_cost(dtype, p, arguments.seconds)
            print(f"{str(dtype)[6:]:9} dropout {p:<5} fixed cost a layer {cost:6.1f} us", flush=True)
            rows.append({"dtype": str(dtype)[6:], "p": p, "microseconds_a_layer": cost})
        for name in GROUPS:
            given = (arguments.tokens, arguments.rank, dtype, arguments.dropout, arguments.seconds)
            overheads = group_overheads(name, *given)
            shown = {key: round(value, 3) for key, value in overheads.items()}
            print(f"{str(dtype)[6:]:9} {name:9}", shown, flush=True)
            rows.append({"dtype": str(dtype)[6:], "p": arguments.dropout, "group": name, "over_frozen": overheads})
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key != "json"}
        content = {"settings": settings, "hardware": hardware(), "versions": versions(), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
