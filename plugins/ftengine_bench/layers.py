"""The measured layers and their providers: the frozen layer, PyTorch, other libraries, and ftengine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from ftengine.errors import InputError, did_you_mean
from ftengine.ops import active_backend, lowrank_linear, use_reference

SCALE = 2.0  # alpha / r; no provider is quicker for one value than for another


@dataclass(frozen=True)
class Shape:
    """The shape of a frozen linear layer and its input: x (M, K), weight (N, K).

    Args:
        m: tokens.
        k: inputs.
        n: outputs.
        layers: names of the layers of a block that have this shape; empty for a shape given by hand.
        transposed: the weight is stored as (K, N), as GPT-2's Conv1D stores it.
    """

    m: int
    k: int
    n: int
    layers: tuple[str, ...] = ()
    transposed: bool = False

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


def _llama(d: int, kv: int, ff: int) -> tuple[tuple[str, int, int], ...]:
    """Return the layers of a block of this hidden size, width of keys and values, and intermediate size."""
    attention = ("q_proj", d, d), ("k_proj", d, kv), ("v_proj", d, kv), ("o_proj", d, d)
    return *attention, ("gate_proj", d, ff), ("up_proj", d, ff), ("down_proj", ff, d)


PRESETS = {
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
    "gpt2": (("attn.c_attn", 768, 2304), ("attn.c_proj", 768, 768), ("mlp.c_fc", 768, 3072), ("mlp.c_proj", 3072, 768)),
}
"""Every linear layer of one transformer block, (name, K, N), from the published configuration."""

TRANSPOSED = {"gpt2"}
"""Presets whose weights are stored as (K, N)."""


def preset_shapes(name: str, tokens: Iterable[int]) -> list[Shape]:
    """Return the distinct shapes of a preset for each number of tokens.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}. Presets: {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    layers: dict[tuple[int, int], list[str]] = {}
    for layer, k, n in PRESETS[name]:
        layers.setdefault((k, n), []).append(layer)
    return [Shape(m, k, n, tuple(names), name in TRANSPOSED) for m in tokens for (k, n), names in layers.items()]


def parse_shape(text: str) -> Shape:
    """Read a shape such as 512x2048x2048.

    Raises:
        InputError: it is not a shape.
    """
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)[x×]([1-9]\d*)", text.strip())
    if not match:
        raise InputError(
            f"shape {text!r}: write tokens x inputs x outputs (MxKxN), each at least 1, for example 512x2048x2048."
        )
    m, k, n = map(int, match.groups())
    return Shape(m, k, n)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Layer:
    """The operands of a layer: x (M, K), weight (N, K), a (r, K), b (N, r), dy (M, N); p is the dropout probability."""

    shape: Shape
    x: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    dy: Tensor
    p: float

    @property
    def described(self) -> dict[str, Any]:
        """The fields that identify a layer in a report."""
        sizes = {"m": self.shape.m, "k": self.shape.k, "n": self.shape.n, "rank": len(self.a)}
        return {**sizes, "dtype": dtype_name(self.x.dtype), "p": self.p}

    @classmethod
    def make(cls, shape: Shape, rank: int, dtype: torch.dtype, p: float, device: str) -> Layer:
        """Draw the operands. The factors are float32 in any dtype of x, as in training."""
        draw = torch.Generator(device).manual_seed(0)

        def normal(*size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
            return torch.randn(*size, generator=draw, device=device).mul_(scale).to(dtype)

        m, k, n = shape.m, shape.k, shape.n
        stored = normal(*((k, n) if shape.transposed else (n, k)), dtype=dtype, scale=k**-0.5)
        return cls(
            shape=shape,
            x=normal(m, k, dtype=dtype).requires_grad_(),
            weight=stored.t() if shape.transposed else stored,
            a=normal(rank, k, dtype=torch.float32, scale=k**-0.5).requires_grad_(),
            b=normal(n, rank, dtype=torch.float32, scale=rank**-0.5).requires_grad_(),
            dy=normal(m, n, dtype=dtype),
            p=p,
        )

    def step(self, call: Callable[[], Tensor], *factors: Tensor) -> Step:
        """Return the step of a provider that computes y by `call` from these trained factors."""
        inputs = (self.x, *factors)
        return Step(call, inputs, self.dy, (*inputs, self.weight, self.dy))


Parts = tuple[Callable[[], None], Callable[[], None]]
"""What computes forward and backward of a step."""


@dataclass
class Step:
    """Forward and backward of one provider on one layer.

    Args:
        call: computes y.
        inputs: tensors that get gradients.
        dy: the gradient of y.
        given: tensors that exist for every provider, and do not count as its memory.
    """

    call: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    dy: Tensor
    given: tuple[Tensor, ...]
    y: Tensor | None = None
    gradients: tuple[Tensor, ...] | None = None
    graphs: Parts | None = None

    @property
    def parts(self) -> Parts:
        """The timed calls: CUDA graph replays if there are graphs."""
        return self.graphs or (self.forward, self.backward)

    def forward(self) -> None:
        self.y = self.call()

    def backward(self) -> None:
        assert self.y is not None
        self.gradients = torch.autograd.grad(self.y, self.inputs, self.dy)

    def clear(self) -> None:
        """Release the results, outside of the timing."""
        self.y = self.gradients = None


def capture(step: Step) -> None:
    """Capture a step as two CUDA graphs, which write to the memory of its present results."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what libraries allocate at first use cannot be captured
        for _ in range(3):
            step.forward()
            step.backward()
    torch.cuda.current_stream().wait_stream(side)
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward):
        step.forward()
    with torch.cuda.graph(backward, pool=forward.pool()):
        step.backward()
    step.graphs = forward.replay, backward.replay


def composition(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    """Return the eager layer: five calls of PyTorch."""
    update = linear(linear(dropout(x, p) if p else x, a.to(x.dtype)), b.to(x.dtype))
    return linear(x, weight) + update * SCALE


def frozen(layer: Layer) -> Step:
    return layer.step(lambda: linear(layer.x, layer.weight))


def eager(layer: Layer) -> Step:
    a, b = layer.a, layer.b
    return layer.step(lambda: composition(layer.x, layer.weight, a, b, layer.p), a, b)


def compiled_composition(layer: Layer) -> Step:
    # A graph for this shape alone; shapes seen before would otherwise make it a general one.
    torch._dynamo.reset()
    graph, a, b = torch.compile(composition, dynamic=False, fullgraph=True), layer.a, layer.b
    return layer.step(lambda: graph(layer.x, layer.weight, a, b, layer.p), a, b)


def peft(layer: Layer) -> Step:
    """PEFT's layer with factors in x's dtype, its fastest setting, as it converts x otherwise."""
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
    return layer.step(lambda: module(layer.x), a, b)


def lorafusion(layer: Layer) -> Step:
    """LoRAFusion's layer (github.com/CentML/lorafusion), with factors in x's dtype."""
    from lorafusion.ops.lora_v1 import fused_linear_lora

    a, b = _factors_like_x(layer)
    x = layer.x[None]  # it takes a batch of sequences
    return layer.step(lambda: fused_linear_lora(x, layer.weight, a, b, SCALE, dropout_p=layer.p)[0], a, b)


def unsloth(layer: Layer) -> Step:
    """Unsloth's layer, with factors in x's dtype; it does not support dropout."""
    from unsloth.kernels.fast_lora import LoRA_W

    a, b = _factors_like_x(layer)
    x = layer.x[None]
    return layer.step(lambda: LoRA_W.apply(x, layer.weight, None, a, b, SCALE)[0], a, b)


def _factors_like_x(layer: Layer) -> tuple[Tensor, ...]:
    return tuple(factor.detach().to(layer.x.dtype).requires_grad_() for factor in (layer.a, layer.b))


def ours(layer: Layer) -> Step:
    a, b = layer.a, layer.b
    return layer.step(lambda: lowrank_linear(layer.x, layer.weight, None, a, b, SCALE, layer.p), a, b)


def our_reference(layer: Layer) -> Step:
    # Around the forward alone: the backward takes what its forward took.
    return layer.step(use_reference()(ours(layer).call), layer.a, layer.b)


PROVIDERS: dict[str, Callable[[Layer], Step]] = {
    "frozen": frozen,
    "eager": eager,
    "peft": peft,
    "torch-compile": compiled_composition,
    "lorafusion": lorafusion,
    "unsloth": unsloth,
    "reference": our_reference,
    "compiled": ours,
}

MAY_FAIL = ("torch-compile", "lorafusion", "unsloth")
"""Providers whose own compilers may lack something here: they are left out, with the reason."""

WITHOUT_DROPOUT = ("unsloth",)
"""Providers that have no layer with dropout."""

OURS = ("compiled", "reference")
"""Our providers, the better one first."""

GUARDED = "compiled"
"""The provider that must not become slower. The reference is there to be read and compared with."""


def why_unavailable(name: str, device: str) -> str | None:
    """Return why a provider cannot be measured on this machine; None if it can."""
    if name == "peft" and find_spec("peft") is None:
        return "PEFT is not installed; pip install peft"
    if name in ("lorafusion", "unsloth"):
        if device != "cuda":
            return f"{name} computes on GPUs alone"
        return None if find_spec(name) else f"{name} is not installed"
    if name == "compiled":
        backend, reason = active_backend(device)
        return None if backend == "compiled" else reason
    return None
