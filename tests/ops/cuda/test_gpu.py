"""The compiled CUDA kernels on a GPU: `pytest -m gpu tests/ops/cuda`, which benchmarks/gpu_check.sh runs.

What the emulator shows on the host is not shown again but where the device is different: real tensor cores, real
streams, sizes beyond 2^31, the dispatcher. The expected masks come from the specification on the CPU.
"""

import pytest
import torch
from expected import raises

from ftengine.ops import active_backend, lowrank_add, lowrank_linear, quantise_dropout
from ftengine.ops.dropout import dropout_level
from ftengine.ops.philox import keep_mask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]

DEVICE = "cuda"
DTYPES = [torch.bfloat16, torch.float16]
SEED = 0x1234_5678_9ABC_DEF0


@pytest.fixture
def on_gpu(layer):
    """Return on_gpu(leading, k, n, r, dtype, factor_dtype) -> Layer on the GPU."""

    def make(*shape_and_dtypes):
        sample = layer(*shape_and_dtypes)
        for name in ("x", "weight", "bias", "a", "b", "dy"):
            tensor = getattr(sample, name)
            setattr(sample, name, tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad))
        return sample

    return make


def make_seed():
    return torch.tensor(SEED, device=DEVICE)


def mask_of(p, rows, columns):
    """Return the mask of the first rows as the specification on the CPU has it."""
    return keep_mask(torch.tensor(SEED), dropout_level(p), 0, rows, columns).bool()


def arguments(m, k, n, r, dtype, factor_dtype, p):
    """Return the arguments of each operator by its name."""
    x, dx, y, dy, w = (
        torch.randn(size, device=DEVICE, dtype=dtype) for size in ((m, k), (m, k), (m, n), (m, n), (n, k))
    )
    s, ds = (torch.randn(m, r, device=DEVICE, dtype=dtype) for _ in range(2))
    a, b = (torch.randn(size, device=DEVICE).div(8).to(factor_dtype) for size in ((r, k), (n, r)))
    seed = make_seed() if p else None
    return {
        "lowrank_shrink": (x, a, p, seed),
        "lowrank_expand_": (y, s, b, 1.5),
        "lowrank_expand": (y, s, b, 1.5),
        "lowrank_backward_output": (dy, s, b, 1.5),
        "lowrank_backward_input": (x, ds, a, p, seed),
        "lowrank_forward": (x, w, w[:, 0].contiguous(), a, b, 1.5, p, seed),
        "lowrank_backward": (dy, x, s, make_seed() if p else make_seed().new_empty(0), w, a, b, 1.5, p, True),
        "lowrank_backward_input_": (dx, x, ds, a, p, seed),
    }


def call(name, args):
    """Return everything that an operator computes, what it overwrites included; args stay as they are."""
    copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in args]
    result = getattr(torch.ops.ftengine, name)(*copies)
    results = () if result is None else result if isinstance(result, tuple) else (result,)
    return [*results, *(t for t in copies if isinstance(t, torch.Tensor))]


def test_the_compiled_kernels_are_what_runs():
    assert active_backend(DEVICE)[0] == "compiled"


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 24, 16, 4), (3, 8, 40, 1), (70, 1032, 600, 33), (0, 8, 8, 2)])
def test_operators_pass_opcheck(shape, dtype, p):
    for name, args in arguments(*shape, dtype, torch.float32, p).items():
        torch.library.opcheck(getattr(torch.ops.ftengine, name).default, args)
    _, *rest = arguments(*shape, dtype, torch.float32, p)["lowrank_backward_input_"]
    torch.library.opcheck(torch.ops.ftengine.lowrank_backward_input_.default, (None, *rest))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 8, 8, 1),
        ((3, 7), 72, 80, 5),
        ((3, 7), 77, 75, 5),  # takes the reference
        (37, 1104, 584, 17),
        ((2, 500), 4096, 1000, 16),
        (2048, 1024, 4096, 64),
        (300, 512, 640, 256),
        (0, 16, 8, 4),
    ],
)
def test_as_accurate_as_the_composition(on_gpu, composition, assert_as_accurate, shape, dtype, p):
    sample, p = on_gpu(*shape, dtype, torch.float32), quantise_dropout(p)
    mask, seed = None, None
    if p:
        rows = sample.x.numel() // sample.x.shape[-1]
        mask, seed = mask_of(p, rows, sample.x.shape[-1]).view(sample.x.shape).to(DEVICE), make_seed()
    truth = sample.to(torch.float64).run(composition, mask, p)
    assert_as_accurate(sample.run(lowrank_linear, p, seed), sample.run(composition, mask, p), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1 / 65536, 0.05, 0.5, 4095 / 4096])  # of so few, 65535 / 65536 keeps none
def test_masks_equal_the_reference_on_the_cpu(dtype, p):
    rows, k, p = 1000, 200, quantise_dropout(p)
    mask = mask_of(p, rows, k)
    assert mask.any()
    x, dx = torch.ones(rows, k, device=DEVICE, dtype=dtype), torch.zeros(rows, k, device=DEVICE, dtype=dtype)
    identity = torch.eye(k, device=DEVICE, dtype=dtype)
    assert torch.equal(torch.ops.ftengine.lowrank_shrink(x, identity, p, make_seed()).cpu() != 0, mask)
    da = torch.ops.ftengine.lowrank_backward_input_(dx, x, x, identity, p, make_seed())
    assert torch.equal(dx.cpu() != 0, mask)
    expected = mask.double().sum(0) / (1 - p)
    torch.testing.assert_close(da[0].double().cpu(), expected, rtol=torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [16, 40])
def test_results_are_bitwise_equal_from_run_to_run(dtype, rank):
    for name, args in arguments(3000, 2056, 1032, rank, dtype, torch.float32, 0.25).items():
        first = call(name, args)
        for _ in range(5):
            assert all(torch.equal(again, once) for again, once in zip(call(name, args), first, strict=True)), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU here")
def test_a_second_gpu_computes_what_the_first_does():
    for name, args in arguments(300, 1032, 600, 8, torch.bfloat16, torch.float32, 0.25).items():
        there = [t.to("cuda:1") if isinstance(t, torch.Tensor) else t for t in args]
        first, second = call(name, args), call(name, there)
        assert torch.cuda.current_device() == 0
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True)), name


def test_dropped_elements_contribute_nothing():
    p, rows, k = 0.5, 64, 136
    mask = mask_of(p, rows, k).to(DEVICE)
    x = torch.randn(rows, k, device=DEVICE, dtype=torch.bfloat16)
    a, ds = torch.randn(8, k, device=DEVICE), torch.randn(rows, 8, device=DEVICE, dtype=torch.bfloat16)
    poisoned = torch.where(mask, x, float("nan"))
    shrink, backward = torch.ops.ftengine.lowrank_shrink, torch.ops.ftengine.lowrank_backward_input_
    assert torch.equal(shrink(poisoned, a, p, make_seed()), shrink(x, a, p, make_seed()))
    assert torch.equal(backward(None, poisoned, ds, a, p, make_seed()), backward(None, x, ds, a, p, make_seed()))


def test_more_than_two_to_the_31_elements():
    """Rows beyond element 2^31 are computed like those before it: int64 offsets, and the mask of high rows."""
    rows, k, r, p = (1 << 31) // 4096 + 64, 4096, 16, 0.25
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GB of GPU memory")
    x = torch.zeros(rows, k, device=DEVICE, dtype=torch.bfloat16)
    tail = torch.randn(64, k, device=DEVICE, dtype=torch.bfloat16)
    x[-64:] = tail
    a = torch.randn(r, k, device=DEVICE) / 64
    s = torch.ops.ftengine.lowrank_shrink(x, a, p, make_seed())
    mask = keep_mask(torch.tensor(SEED), dropout_level(p), rows - 64, 64, k).bool().to(DEVICE)
    kept = torch.where(mask, tail.double(), 0.0) / (1 - p)
    rounded = a.to(torch.bfloat16).double()
    torch.testing.assert_close(s[-64:].double(), kept @ rounded.T, rtol=2**-8, atol=1e-4)
    assert not s[:-64].any()

    ds = torch.zeros(rows, r, device=DEVICE, dtype=torch.bfloat16)
    ds[-64:] = torch.randn(64, r, device=DEVICE)
    da = torch.ops.ftengine.lowrank_backward_input_(x, x.clone(), ds, a, p, make_seed())
    torch.testing.assert_close(da.double(), ds[-64:].double().T @ kept, rtol=1e-4, atol=1e-4)
    update = torch.where(mask, ds[-64:].double() @ rounded, 0.0) / (1 - p)
    torch.testing.assert_close(x[-64:].double(), tail.double() + update, rtol=2**-8, atol=1e-4)
    assert not x[:-64].any()

    torch.ops.ftengine.lowrank_expand_(x.zero_(), ds, a.T.contiguous(), 1.0)
    torch.testing.assert_close(x[-64:].double(), ds[-64:].double() @ rounded, rtol=2**-8, atol=1e-4)
    x[-64:] = tail
    ds_out, db = torch.ops.ftengine.lowrank_backward_output(x, ds, a.T.contiguous(), 1.0)
    torch.testing.assert_close(ds_out[-64:].double(), tail.double() @ rounded.T, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(db.double(), tail.double().T @ ds[-64:].double(), rtol=1e-4, atol=1e-4)


def test_kernels_run_on_the_current_stream():
    """What a stream computes late is waited for by kernels on that stream, and by no synchronisation of theirs."""
    stream = torch.cuda.Stream()
    a = torch.randn(16, 4096, device=DEVICE)
    x = torch.zeros(2048, 4096, device=DEVICE, dtype=torch.bfloat16)
    filled = torch.randn_like(x)
    expected = torch.ops.ftengine.lowrank_shrink(filled, a, 0.0, None)
    with torch.cuda.stream(stream):  # what the stream allocates first may wait for the device
        torch.ops.ftengine.lowrank_shrink(filled, a, 0.0, None)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second: on another stream the zeros would be read
        x.copy_(filled)
        s = torch.ops.ftengine.lowrank_shrink(x, a, 0.0, None)
        finished_early = stream.query()
    stream.synchronize()
    assert not finished_early
    assert torch.equal(s, expected)


def test_a_graph_captures_a_training_step(on_gpu):
    """No operator synchronises or allocates outside torch: forward and backward replay from a CUDA graph."""
    sample, seed = on_gpu(64, 136, 72, 8, torch.bfloat16, torch.float32), make_seed()
    expected = sample.run(lowrank_linear, 0.25, seed)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sample.run(lowrank_linear, 0.25, seed)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        captured = sample.run(lowrank_linear, 0.25, seed)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    assert all(torch.equal(c, e) for c, e in zip(captured, expected, strict=True))


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_layers_under_autocast(on_gpu, composition, assert_as_accurate, autocast_dtype, p):
    sample = on_gpu((2, 33), 136, 72, 8)
    sample.dy = sample.dy.to(autocast_dtype)
    seed, mask = (make_seed(), mask_of(p, 66, 136).view(2, 33, 136).to(DEVICE)) if p else (None, None)
    truth = sample.to(torch.float64).run(composition, mask, p)

    def layer_then_add(x, weight, bias, a, b, scale, p, seed):
        return lowrank_add(torch.nn.functional.linear(x, weight, bias), x, a, b, scale, p, seed)

    with torch.autocast(DEVICE, autocast_dtype):
        plain = sample.run(composition, mask, p)
        for function in (lowrank_linear, layer_then_add):
            ours = sample.run(function, p, seed)
            assert [t.dtype for t in ours] == [autocast_dtype, *[torch.float32] * 3]
            assert_as_accurate(ours, plain, truth)


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_the_benchmark_replays_what_a_layer_computes(p):
    from ftengine_bench.layers import PROVIDERS, Layer, Shape, capture

    step = PROVIDERS["compiled"](Layer.make(Shape(64, 136, 72), 8, torch.bfloat16, p, DEVICE))
    step.forward()
    step.backward()
    expected = [t.clone() for t in (step.y, *step.gradients)]
    capture(step)
    results = (step.y, *step.gradients)
    for tensor in results:
        tensor.zero_()
    for part in step.parts:
        part()
    assert all(torch.isfinite(t).all() and t.any() for t in results)
    if not p:  # each replay draws its own mask
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_traced_layers_equal_eager_ones(on_gpu):
    sample, seed = on_gpu((2, 33), 136, 72, 8, torch.bfloat16, torch.float32), make_seed()
    compiled = torch.compile(lowrank_linear, fullgraph=True, backend="aot_eager")
    traced, eager = sample.run(compiled, 0.25, seed), sample.run(lowrank_linear, 0.25, seed)
    assert all(torch.equal(a, b) for a, b in zip(traced, eager, strict=True))


def test_an_output_of_another_dtype_keeps_it(on_gpu):
    sample = on_gpu(66, 136, 72, 8, torch.bfloat16, torch.float32)
    y = torch.randn(66, 72, device=DEVICE, dtype=torch.float16, requires_grad=True)
    out = lowrank_add(y, sample.x, sample.a, sample.b, 1.5, 0.25, make_seed())
    out.sum().backward()
    assert [t.dtype for t in (out, y.grad, sample.x.grad)] == [torch.float16, torch.float16, torch.bfloat16]


def test_operators_name_what_is_wrong():
    x, a = torch.randn(4, 8, device=DEVICE).bfloat16(), torch.randn(2, 8, device=DEVICE)
    shrink = torch.ops.ftengine.lowrank_shrink
    with raises(RuntimeError, "seed"):
        shrink(x, a, 0.25, None)
    with raises(RuntimeError, "1/65536"):
        shrink(x, a, 0.3, make_seed())
    with raises(RuntimeError, "(2, 8)"):
        shrink(x, a[:, :4], 0.0, None)
    with raises(RuntimeError, "device", "CUDA 0"):
        shrink(x, a.cpu(), 0.0, None)
    with raises(RuntimeError, "x must be on a CUDA device"):
        shrink(x.cpu(), a, 0.0, None)
    with raises(RuntimeError, "contiguous"):
        shrink(x.T, torch.randn(2, 4, device=DEVICE), 0.0, None)
    with raises(RuntimeError, "x is Float"):
        shrink(x.float(), a, 0.0, None)
