"""Who computes a frozen layer with a low-rank update: the frozen layer alone, other people's ways, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from ftengine.ops import active_backend, lowrank_linear, use_reference
from ftengine_bench.shapes import Shape

SCALE = 2.0  # alpha / r; no provider is quicker for one value than for another


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Layer:
    """The operands: x (M, K), weight (N, K), a (r, K), b (N, r), dy (M, N); p is dropout's probability."""

    x: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    dy: Tensor
    p: float

    @property
    def described(self) -> dict[str, Any]:
        """The fields by which a report tells layers apart."""
        (m, k), n, rank = self.x.shape, len(self.weight), len(self.a)
        return {"m": m, "k": k, "n": n, "rank": rank, "dtype": dtype_name(self.x.dtype), "p": self.p}

    @classmethod
    def make(cls, shape: Shape, rank: int, dtype: torch.dtype, p: float, device: str) -> Layer:
        """Draw the operands. The factors are float32 whatever x is, as training keeps them."""
        draw = torch.Generator(device).manual_seed(0)

        def normal(*size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
            return torch.randn(*size, generator=draw, device=device).mul_(scale).to(dtype)

        m, k, n = shape.m, shape.k, shape.n
        stored = normal(*((k, n) if shape.transposed else (n, k)), dtype=dtype, scale=k**-0.5)
        return cls(
            x=normal(m, k, dtype=dtype).requires_grad_(),
            weight=stored.t() if shape.transposed else stored,
            a=normal(rank, k, dtype=torch.float32, scale=k**-0.5).requires_grad_(),
            b=normal(n, rank, dtype=torch.float32, scale=rank**-0.5).requires_grad_(),
            dy=normal(m, n, dtype=dtype),
            p=p,
        )


@dataclass
class Step:
    """Forward and backward of one provider on one layer.

    Args:
        call: computes y.
        inputs: what gradients are taken of.
        dy: the gradient of y.
        given: tensors that exist whoever computes, and are not counted as memory of a provider.
    """

    call: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    dy: Tensor
    given: tuple[Tensor, ...]
    y: Tensor | None = None
    gradients: tuple[Tensor, ...] | None = None

    def forward(self) -> None:
        self.y = self.call()

    def backward(self) -> None:
        assert self.y is not None
        self.gradients = torch.autograd.grad(self.y, self.inputs, self.dy)

    def clear(self) -> None:
        """Let the results go, outside of what is timed."""
        self.y = self.gradients = None


def composition(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    """Return the layer as everybody writes it: five calls of PyTorch."""
    update = linear(linear(dropout(x, p) if p else x, a.to(x.dtype)), b.to(x.dtype))
    return linear(x, weight) + update * SCALE


def frozen(layer: Layer) -> Step:
    given = (layer.x, layer.weight, layer.dy)
    return Step(lambda: linear(layer.x, layer.weight), (layer.x,), layer.dy, given)


def eager(layer: Layer) -> Step:
    return _with_factors(layer, lambda: composition(layer.x, layer.weight, layer.a, layer.b, layer.p))


def compiled_composition(layer: Layer) -> Step:
    # A graph for this shape alone; shapes seen before would otherwise make it a general one.
    torch._dynamo.reset()
    graph = torch.compile(composition, dynamic=False, fullgraph=True)
    return _with_factors(layer, lambda: graph(layer.x, layer.weight, layer.a, layer.b, layer.p))


def peft(layer: Layer) -> Step:
    """PEFT's layer, its factors in x's dtype: that is its quickest way, since it converts x otherwise."""
    from peft import LoraConfig, get_peft_model

    rank, (n, k) = layer.a.shape[0], layer.weight.shape
    with torch.device(layer.x.device):
        base = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False, dtype=layer.x.dtype))
    base[0].weight = torch.nn.Parameter(layer.weight, requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), lora_dropout=layer.p, target_modules=["0"])
    wrapped: Any = get_peft_model(base, config, autocast_adapter_dtype=False).train()
    module = wrapped.base_model.model[0]
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    with torch.no_grad():
        a.copy_(layer.a)
        b.copy_(layer.b)
    return Step(lambda: module(layer.x), (layer.x, a, b), layer.dy, (layer.x, layer.weight, layer.dy, a, b))


def ours(layer: Layer) -> Step:
    return _with_factors(layer, lambda: lowrank_linear(layer.x, layer.weight, None, layer.a, layer.b, SCALE, layer.p))


def our_reference(layer: Layer) -> Step:
    def call() -> Tensor:
        with use_reference():  # the backward keeps what the forward chose
            return lowrank_linear(layer.x, layer.weight, None, layer.a, layer.b, SCALE, layer.p)

    return _with_factors(layer, call)


def _with_factors(layer: Layer, call: Callable[[], Tensor]) -> Step:
    inputs = (layer.x, layer.a, layer.b)
    return Step(call, inputs, layer.dy, (*inputs, layer.weight, layer.dy))


PROVIDERS: dict[str, Callable[[Layer], Step]] = {
    "frozen": frozen,
    "eager": eager,
    "peft": peft,
    "torch-compile": compiled_composition,
    "reference": our_reference,
    "compiled": ours,
}

OURS = ("compiled", "reference")
"""Our providers, the better one first."""

GUARDED = "compiled"
"""The provider that must not become slower. The reference is there to be read and compared with."""


def why_unavailable(name: str, device: str) -> str | None:
    """Say why a provider cannot be measured here, or None when it can."""
    if name == "peft" and find_spec("peft") is None:
        return "PEFT is not installed; pip install peft"
    if name == "compiled":
        backend, reason = active_backend(device)
        return None if backend == "compiled" else reason
    return None
