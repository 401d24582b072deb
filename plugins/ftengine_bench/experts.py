"""Layers of experts with low-rank updates against the frozen layer, a loop, grouped products and PEFT.

Of a model the sizes are taken: H, I, E and k. The gate is SiLU(gate) · up, without biases, for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, grouped_mm, linear, silu

from ftengine.errors import InputError, did_you_mean
from ftengine.ops import ExpertMap, lowrank_experts
from ftengine_bench.layers import SCALE, Step, dtype_name
from ftengine_bench.memory import saved_bytes
from ftengine_bench.tables import Table
from ftengine_bench.timing import clock_of, measure, paired_ratio, spread


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of a layer: `width` H, `inner` I, E experts, of which a token passes `chosen`."""

    width: int
    inner: int
    experts: int
    chosen: int

    def scaled(self, by: int) -> ExpertShape:
        """Return the layer with widths divided by a number, in multiples of 16."""
        width, inner = (max(16, size // by // 16 * 16) for size in (self.width, self.inner))
        return ExpertShape(width, inner, self.experts, self.chosen)


EXPERT_PRESETS = {
    # huggingface.co/allenai/OLMoE-1B-7B-0924: hidden_size 2048, intermediate_size 1024, num_experts 64.
    "olmoe": ExpertShape(2048, 1024, 64, 8),
    # huggingface.co/Qwen/Qwen3-30B-A3B: hidden_size 2048, moe_intermediate_size 768, num_experts 128.
    "qwen3-30b-a3b": ExpertShape(2048, 768, 128, 8),
    # huggingface.co/openai/gpt-oss-20b: hidden_size 2880, intermediate_size 2880, num_local_experts 32.
    "gpt-oss-20b": ExpertShape(2880, 2880, 32, 4),
}
"""A layer of experts of each model, from the published configuration."""


class ExpertLayer(nn.Module):
    """The operands: x (T, H), up (E, 2I, H), down (E, H, I), A and B of both, and each token's experts and shares.

    Its forward is the frozen layer by grouped products, as transformers computes it.
    """

    is_transposed = False  # PEFT reads which dimension is the input's

    def __init__(self, shape: ExpertShape, tokens: int, rank: int, dtype: torch.dtype, p: float, device: str) -> None:
        super().__init__()
        draw = torch.Generator(device).manual_seed(0)

        def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
            return (
                torch.randn(*size, generator=draw, device=device, dtype=torch.float32).div_(size[-1] ** 0.5).to(dtype)
            )

        h, i, e = shape.width, shape.inner, shape.experts
        self.up = nn.Parameter(normal(e, 2 * i, h), requires_grad=False)
        self.down = nn.Parameter(normal(e, h, i), requires_grad=False)
        sizes = (e, rank, h), (e, 2 * i, rank), (e, rank, i), (e, h, rank)
        self.factors = [normal(*size, dtype=torch.float32).requires_grad_() for size in sizes]
        self.x = (normal(tokens, h) * h**0.5).requires_grad_()
        self.dy = normal(tokens, h)
        scores = torch.rand(tokens, e, generator=draw, device=device)
        self.shares, self.chosen = scores.softmax(-1).topk(shape.chosen)
        self.p, self.shape = p, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(x, lambda rows, ends, weight, _: grouped_mm(rows, weight.transpose(1, 2), offs=ends))

    def grouped(self, x: Tensor, product: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Tensor:
        """Return the output; products of rows sorted by expert are `product(rows, ends, weight, first factor)`."""
        flat = self.chosen.flatten()
        order = flat.argsort(stable=True)
        ends = torch.bincount(flat, minlength=self.shape.experts).cumsum(0).to(torch.int32)
        rows = product(x[order // self.chosen.shape[1]], ends, self.up, 0)
        rows = product(gate(rows), ends, self.down, 2) * self.shares.flatten()[order, None].to(x.dtype)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return rows[back].unflatten(0, self.chosen.shape).sum(1)

    def step(self, call: Callable[[], Tensor], *factors: Tensor) -> Step:
        return Step(call, (self.x, *factors), self.dy, (self.x, *factors, self.up, self.down, self.dy))


def gate(hidden: Tensor) -> Tensor:
    first, second = hidden.chunk(2, -1)
    return silu(first) * second


def _grouped_updates(layer: ExpertLayer, x: Tensor, *factors: Tensor) -> Tensor:
    def product(rows: Tensor, ends: Tensor, weight: Tensor, at: int) -> Tensor:
        a, b = (factor.to(rows.dtype).transpose(1, 2) for factor in factors[at : at + 2])
        wet = dropout(rows, layer.p) if layer.p else rows
        update = grouped_mm(grouped_mm(wet, a, offs=ends), b, offs=ends)
        return grouped_mm(rows, weight.transpose(1, 2), offs=ends) + update * SCALE

    return layer.grouped(x, product)


def _loop(layer: ExpertLayer, x: Tensor, *factors: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for expert in range(layer.shape.experts):
        tokens, place = (layer.chosen == expert).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        up_a, up_b, down_a, down_b = (factor[expert].to(x.dtype) for factor in factors)

        def product(rows: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
            wet = dropout(rows, layer.p) if layer.p else rows
            return linear(rows, weight) + linear(linear(wet, a), b) * SCALE

        rows = product(gate(product(x[tokens], layer.up[expert], up_a, up_b)), layer.down[expert], down_a, down_b)
        y = y.index_add(0, tokens, rows * layer.shares[tokens, place, None].to(x.dtype))
    return y


def frozen(layer: ExpertLayer) -> Step:
    return layer.step(lambda: layer(layer.x))


def loop(layer: ExpertLayer) -> Step:
    return layer.step(lambda: _loop(layer, layer.x, *layer.factors), *layer.factors)


def grouped(layer: ExpertLayer) -> Step:
    return layer.step(lambda: _grouped_updates(layer, layer.x, *layer.factors), *layer.factors)


def compiled(layer: ExpertLayer) -> Step:
    torch._dynamo.reset()
    graph: Any = torch.compile(partial(_grouped_updates, layer), dynamic=False)
    return layer.step(lambda: graph(layer.x, *layer.factors), *layer.factors)


def peft(layer: ExpertLayer) -> Step:
    """PEFT's `target_parameters`, which forms W + B A of all experts, with B's expert running fastest; no dropout."""
    from peft import LoraConfig, get_peft_model

    rank = layer.factors[0].shape[1]
    block = nn.ModuleDict({"experts": layer})
    config = LoraConfig(
        r=rank, lora_alpha=round(SCALE * rank), target_modules=[], target_parameters=["experts.up", "experts.down"]
    )
    wrapped: Any = get_peft_model(block, config, autocast_adapter_dtype=False).base_model.model["experts"]
    trained = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, factor in trained.items():
            at = (0 if "base_layer" in name else 2) + ("lora_B" in name)
            own = layer.factors[at]
            factor.copy_(own.flatten(0, 1) if own.shape[1] == rank else own.permute(1, 2, 0).flatten(1))
    return layer.step(lambda: wrapped(layer.x), *trained.values())


def ours(layer: ExpertLayer) -> Step:
    up_a, up_b, down_a, down_b = layer.factors
    maps = ExpertMap(layer.up, None, up_a, up_b, SCALE), ExpertMap(layer.down, None, down_a, down_b, SCALE)
    call = partial(lowrank_experts, layer.x, layer.chosen, layer.shares, *maps, gate, layer.p)
    return layer.step(call, *layer.factors)


EXPERT_PROVIDERS: dict[str, Callable[[ExpertLayer], Step]] = {
    "frozen": frozen,
    "loop": loop,
    "grouped": grouped,
    "torch-compile": compiled,
    "peft": peft,
    "ftengine": ours,
}


def measure_experts(
    preset: str, scale: str, tokens: str, rank: str, dropout: str, dtype: str, device: str, providers: str, seconds: str
) -> dict[str, Any]:
    """Time every provider in turn; return what is written as JSON.

    Raises:
        InputError: an option is unknown or malformed.
    """
    if preset not in EXPERT_PRESETS:
        known = ", ".join(EXPERT_PRESETS)
        raise InputError(f"no preset {preset!r}. Presets: {known}.{did_you_mean(preset, EXPERT_PRESETS)}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    usual = [name for name in EXPERT_PROVIDERS if device != "cpu" or name != "torch-compile"]  # which takes minutes
    named = usual if providers == "auto" else [name.strip() for name in providers.split(",")]
    if other := [name for name in named if name not in EXPERT_PROVIDERS]:
        raise InputError(f"--providers {other[0]!r}: there are {', '.join(EXPERT_PROVIDERS)}.")
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype {dtype!r}: write float32 or bfloat16.")
    shape = EXPERT_PRESETS[preset].scaled(_whole("--scale", scale))
    sizes = {"tokens": _whole("--tokens", tokens), "rank": _whole("--rank", rank), "p": _number("--dropout", dropout)}
    layer = ExpertLayer(shape, dtype=getattr(torch, dtype), device=device, **sizes)
    steps, left_out = _prepared(named, layer)
    clock, limit = clock_of(device), _number("--seconds", seconds)
    saved = {name: saved_bytes(step) for name, step in steps.items()}
    times = measure({name: step.parts for name, step in steps.items()}, clock, limit, lambda name: steps[name].clear())
    whole = {name: [sum(parts) for parts in rounds] for name, rounds in times.items()}
    rows = {
        name: {
            **spread(values),
            **({"of_frozen": paired_ratio(values, whole["frozen"])} if "frozen" in whole else {}),
            "saved_bytes": saved[name],
        }
        for name, values in whole.items()
    }
    described = {"preset": preset, **asdict(shape), **sizes, "dtype": dtype_name(layer.x.dtype), "device": device}
    return {**described, "threads": torch.get_num_threads(), "layers": rows, "left_out": left_out}


def _prepared(named: list[str], layer: ExpertLayer) -> tuple[dict[str, Step], dict[str, str]]:
    """Return the providers' steps, each run once, and why others are left out."""
    steps, left_out = dict[str, Step](), dict[str, str]()
    for name in named:
        if name == "peft" and (layer.p or find_spec("peft") is None):
            left_out[name] = "it has no dropout of parameters" if layer.p else "PEFT is not installed; pip install peft"
            continue
        try:
            steps[name] = EXPERT_PROVIDERS[name](layer)
            steps[name].forward()
            steps[name].backward()
            steps[name].clear()
        except Exception as error:  # a compiler that lacks its own compiler raises anything
            if name not in ("torch-compile", "grouped"):
                raise
            steps.pop(name, None)
            left_out[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return steps, left_out


def write(found: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def table(found: dict[str, Any]) -> Table:
    """Return the printed table."""
    rows = []
    for name, row in found["layers"].items():
        ratio = f"{row['of_frozen']:.2f}" if "of_frozen" in row else ""
        rows.append((name, f"{1e3 * row['p50']:.2f}", ratio, str(row["saved_bytes"])))
    return ("provider", "ms", "of frozen", "saved bytes"), rows


def _whole(flag: str, text: str) -> int:
    number = _number(flag, text)
    if number < 1 or number != int(number):
        raise InputError(f"{flag} {text!r}: write a whole number, 1 at least.")
    return int(number)


def _number(flag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**31:
        raise InputError(f"{flag} {text!r}: write a number.")
    return number
