"""The low-rank kernels under pytest-benchmark, for its statistics, histograms and comparisons.

    pytest benchmarks --benchmark-enable

`ftengine bench kernels` measures the same calls in turn, which noise of the machine disturbs less; its figures are
the ones to publish. OMP_NUM_THREADS and FTENGINE_DISABLE_EXTENSION=1 (the reference instead of compiled kernels) are
as everywhere.
"""

from __future__ import annotations

import pytest
import torch

from ftengine.ops import quantise_dropout
from ftengine_bench.kernels import operator_calls
from ftengine_bench.layers import PROVIDERS, Layer, Shape, why_unavailable

SHAPE = Shape(512, 576, 1536)  # gate_proj of SmolLM2-135M
RANK = 8
DROPOUT = quantise_dropout(0.05)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")),
]
OPERATORS = [
    ("lowrank_shrink", 0.0),
    ("lowrank_shrink", DROPOUT),
    ("lowrank_backward_input_", 0.0),
    ("lowrank_backward_input_", DROPOUT),
    ("lowrank_expand_", 0.0),
    ("lowrank_backward_output", 0.0),
    ("lowrank_merge_", 0.0),
]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


def run(benchmark, device, call):
    """Time a call until the device is done with it."""

    def whole():
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark(whole)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "p"), OPERATORS, ids=lambda value: f"{value:.2g}" if isinstance(value, float) else value
)
def test_operator(benchmark, name, p, device, dtype):
    benchmark.group = f"{name} {device} {dtype}"
    calls = operator_calls(Layer.make(SHAPE, RANK, dtype, 0.0, device), (0.0, DROPOUT))
    assert set(calls) == set(OPERATORS)
    run(benchmark, device, calls[name, p][0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, DROPOUT], ids=["0", "0.05"])
@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "torch-compile"])
def test_layer(benchmark, provider, p, device, dtype):
    reason = why_unavailable(provider, device)
    if reason:
        pytest.skip(reason)
    benchmark.group = f"layer {device} {dtype} dropout {p:.2g}"
    step = PROVIDERS[provider](Layer.make(SHAPE, RANK, dtype, p, device))

    def both():
        step.forward()
        step.backward()

    run(benchmark, device, both)
    assert all(gradient.isfinite().all() for gradient in step.gradients)
