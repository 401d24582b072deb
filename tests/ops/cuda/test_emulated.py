"""The CUDA operators, run by the host: right, exact about masks, the same in any order; planted faults are found."""

from dataclasses import astuple, dataclass, replace

import pytest
import torch
from expected import raises
from torch import Tensor

from ftengine.ops import quantise_dropout
from ftengine.ops.dropout import dropout_level
from ftengine.ops.philox import keep_mask

pytestmark = pytest.mark.slow

SCALE = 1.5
SEED = torch.tensor(0x1234_5678_9ABC_DEF0)
DTYPES = [torch.bfloat16, torch.float16]

# M, K, N, and how many blocks the device holds at once. Warps take 16 rows and 64 columns; blocks of shrink 32 rows,
# of the others 128 or 256 columns and at least 128 rows, and more blocks at once mean more splits of each.
SHAPES = [
    (1, 8, 8, 1),
    (5, 72, 40, 1),
    (37, 1104, 72, 40),
    (300, 136, 584, 40),
    (150, 1032, 64, 5),
]


@dataclass
class Operands:
    """x, dx (M, K), y, dy (M, N); s, ds (M, r), a (r, K), b (N, r)."""

    x: Tensor
    dx: Tensor
    y: Tensor
    dy: Tensor
    s: Tensor
    ds: Tensor
    a: Tensor
    b: Tensor

    def to(self, dtype: torch.dtype) -> "Operands":
        return Operands(*(t.to(dtype) for t in astuple(self)))


@pytest.fixture
def operands():
    """Return operands(m, k, n, r, dtype, factor_dtype) -> Operands."""

    def make(m, k, n, r, dtype=torch.float32, factor_dtype=None) -> Operands:
        large = (torch.randn(size).to(dtype) for size in ((m, k), (m, k), (m, n), (m, n)))
        s, ds = (torch.randn(m, r).to(dtype) for _ in range(2))
        a, b = torch.randn(r, k) / max(k, 1) ** 0.5, torch.randn(n, r) / r**0.5
        return Operands(*large, s, ds, a.to(factor_dtype or dtype), b.to(factor_dtype or dtype))

    return make


def run(ops, o: Operands, p=0.0, seed=None) -> dict[str, Tensor]:
    """Return what every operator computes, by name."""
    y, dx = o.y.clone(), o.dx.clone()
    s = ops.lowrank_shrink(o.x, o.a, p, seed)
    ops.lowrank_expand_(y, o.s, o.b, SCALE)
    ds, db = ops.lowrank_backward_output(o.dy, o.s, o.b, SCALE)
    da = ops.lowrank_backward_input_(dx, o.x, o.ds, o.a, p, seed)
    return {"s": s, "y": y, "ds": ds, "db": db, "da": da, "dx": dx}


def compose(o: Operands, p: float, mask: Tensor) -> dict[str, Tensor]:
    """Return the same as ordinary PyTorch in o.x's dtype."""
    dtype = o.x.dtype
    a, b, mask = o.a.to(dtype), o.b.to(dtype), mask.to(dtype) / (1 - p)
    return {
        "s": (o.x * mask) @ a.T,
        "y": o.y + SCALE * (o.s @ b.T),
        "ds": SCALE * (o.dy @ b),
        "db": (SCALE * (o.dy.T @ o.s)).to(o.b.dtype),
        "da": (o.ds.T @ (o.x * mask)).to(o.a.dtype),
        "dx": o.dx + (o.ds @ a) * mask,
    }


def assert_as_accurate(ours, plain, truth, dtype):
    """max|ours - truth| <= 2 max|plain - truth| + a unit in the last place; ../conftest.py says why."""
    for name, r in truth.items():
        k, p = ours[name], plain[name]
        assert k.shape == r.shape, name
        assert k.dtype == p.dtype, name
        if r.numel() == 0:
            continue
        unit = torch.finfo(dtype).eps * r.abs().max()
        error, allowed = (k.double() - r).abs().max(), 2 * (p.double() - r).abs().max() + unit
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def check(ops, o: Operands, p: float) -> None:
    p = quantise_dropout(p)
    mask = torch.ones(o.x.shape, dtype=torch.bool)
    if p:
        mask = keep_mask(SEED, dropout_level(p), 0, *o.x.shape).bool()
    ours = run(ops, o, p, SEED if p else None)
    assert_as_accurate(ours, compose(o, p, mask), compose(o.to(torch.float64), p, mask), o.x.dtype)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_the_composition(operands, emulated, shape, dtype, p):
    *sizes, multiprocessors = shape
    check(emulated(1, multiprocessors), operands(*sizes, 8, dtype, torch.float32), p)


@pytest.mark.parametrize("rank", [1, 16, 17, 64, 100, 256])
def test_every_rank(operands, emulated, rank):
    check(emulated(2), operands(33, 72, 80, rank, torch.bfloat16), 0.25)


@pytest.mark.parametrize("factor_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_any_dtype(operands, emulated, factor_dtype):
    check(emulated(3), operands(9, 24, 40, 5, torch.bfloat16, factor_dtype), 0.25)


@pytest.mark.parametrize("shape", [(0, 8, 16), (3, 0, 16), (3, 16, 0), (0, 0, 0)])
def test_empty_sizes_give_zeros(operands, emulated, shape):
    results = run(emulated(), operands(*shape, 4, torch.bfloat16, torch.float32), 0.25, SEED)
    assert not any(results[name].any() for name in ("da", "db") if shape[0] == 0)
    assert not results["s"].any() or shape[1]
    assert not results["ds"].any() or shape[2]


def test_strides_and_addresses_do_not_matter(operands, emulated):
    """Small operands of any strides; large ones that are only read may begin anywhere."""

    def shifted(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    def strided(t):
        return torch.stack([t.T, torch.full_like(t.T, float("nan"))], -1)[..., 0].T

    o = operands(20, 72, 40, 5, torch.bfloat16)
    moved = Operands(shifted(o.x), o.dx, o.y, shifted(o.dy), *map(strided, (o.s, o.ds, o.a, o.b)))
    assert not moved.a.is_contiguous()
    assert moved.x.data_ptr() % 16
    plain, odd = run(emulated(), o, 0.25, SEED), run(emulated(), moved, 0.25, SEED)
    assert all(torch.equal(odd[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_small_operands_of_another_dtype_are_rounded_to_that_of_the_large_ones(operands, emulated, dtype):
    """So is S where y has another dtype than x: a model in float16 that bfloat16 autocast trains."""
    o = operands(20, 72, 40, 5, torch.bfloat16)
    small = {name: getattr(o, name).to(dtype) for name in ("s", "ds", "a", "b")}
    rounded = replace(o, **{name: tensor.bfloat16() for name, tensor in small.items() if name in ("s", "ds")})
    plain = run(emulated(), replace(rounded, a=small["a"], b=small["b"]), 0.25, SEED)
    ours = run(emulated(), replace(o, **small), 0.25, SEED)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("p", [1 / 65536, 0.05, 0.5, 65535 / 65536])
def test_masks_are_those_of_the_specification(emulated, p):
    rows, k, p = 37, 136, quantise_dropout(p)
    mask = keep_mask(SEED, dropout_level(p), 0, rows, k).bool()
    x, identity, dx = (t.bfloat16() for t in (torch.ones(rows, k), torch.eye(k), torch.zeros(rows, k)))
    assert torch.equal(emulated().lowrank_shrink(x, identity, p, SEED) != 0, mask)
    da = emulated().lowrank_backward_input_(dx, x, x, identity, p, SEED)
    assert torch.equal(dx != 0, mask)
    assert torch.equal(da != 0, mask.any(0).expand(k, k))


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_dropped_elements_contribute_nothing(operands, emulated, poison):
    o, p = operands(20, 72, 40, 5, torch.bfloat16), 0.5
    mask = keep_mask(SEED, dropout_level(p), 0, *o.x.shape).bool()
    clean = run(emulated(), o, p, SEED)
    o.x = torch.where(mask, o.x, poison)
    poisoned = run(emulated(), o, p, SEED)
    assert all(torch.equal(poisoned[name], clean[name]) for name in ("s", "da", "dx"))
    o.ds[:] = poison
    untouched = o.dx.clone()
    emulated().lowrank_backward_input_(untouched, o.x, o.ds, o.a, p, SEED)
    assert torch.equal(untouched[~mask], o.dx[~mask])


@pytest.mark.parametrize("rank", [5, 40])
def test_results_do_not_depend_on_the_order_of_blocks_and_threads(operands, emulated, rank):
    o = operands(300, 1104, 600, rank, torch.bfloat16)
    first, *others = (run(emulated(order, 20), o, 0.25, SEED) for order in (1, 2, 3))
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


def test_fresh_results_are_those_added_in_place(operands, emulated):
    """What a layer that nobody has seen takes: y is not copied first, and dx is written, not added to zeros."""
    o, ops = operands(20, 72, 40, 5, torch.bfloat16), emulated()
    expected = run(ops, o, 0.25, SEED)
    y = o.y.clone()
    assert torch.equal(ops.lowrank_expand(o.y, o.s, o.b, SCALE), expected["y"])
    assert torch.equal(o.y, y)
    zeros = torch.zeros_like(o.x)
    ops.lowrank_backward_input_(zeros, o.x, o.ds, o.a, 0.25, SEED)
    dx, da = ops.lowrank_backward_input(o.x, o.ds, o.a, 0.25, SEED)
    assert torch.equal(dx, zeros)
    assert torch.equal(da, expected["da"])


def test_an_input_without_a_gradient_costs_none(operands, emulated):
    o = operands(20, 72, 40, 5, torch.bfloat16)
    da = emulated().lowrank_backward_input_(None, o.x, o.ds, o.a, 0.25, SEED)
    assert torch.equal(da, run(emulated(), o, 0.25, SEED)["da"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_rounds_as_torch_does(emulated, dtype):
    """The emulator's own conversions; a product with 1 rounds each float32 factor once."""
    bits = torch.arange(-(2**31), 2**31, 65521 * 13, dtype=torch.int64).to(torch.int32)
    ties = torch.arange(0, 2**15, 7, dtype=torch.int32)
    halves = ties.to(torch.int16).view(dtype).float()
    middles = (halves + (ties + 1).to(torch.int16).view(dtype).float()) / 2
    values = torch.cat([bits.view(torch.float32), halves, middles, -middles])
    values = values[values.isfinite()]
    values = values[: len(values) // 8 * 8]
    y, s = torch.zeros(1, len(values), dtype=dtype), torch.ones(1, 1, dtype=dtype)
    emulated().lowrank_expand_(y, s, values[:, None], 1.0)
    rounded = values.to(dtype)
    finite = rounded.isfinite()
    assert torch.equal(y[0, finite], rounded[finite])


def test_operators_name_what_is_wrong(emulated):
    x, a, shrink = torch.randn(4, 8).bfloat16(), torch.randn(2, 8), emulated().lowrank_shrink
    for match, given in {
        "needs a seed": (x, a, 0.25, None),
        "multiple of 1/65536": (x, a, 0.3, SEED),
        "a must be (2, 8)": (x, a[:, :4], 0.0, None),
        "x must be contiguous": (x.T, torch.randn(2, 4), 0.0, None),
        "a multiple of 8 columns": (torch.randn(4, 12).bfloat16(), torch.randn(2, 12), 0.0, None),
        "x is Float": (x.float(), a, 0.0, None),
        "rank is 257": (x, torch.randn(257, 8), 0.0, None),
    }.items():
        with raises(RuntimeError, match):
            shrink(*given)


FAULTS = {
    "missing barrier": "without a barrier|that nobody wrote",  # whichever thread comes first
    "missing warp barrier": "without a barrier|that nobody wrote",
    "write after read": "without a barrier between",
    "out of bounds": "word 256 of 256",
    "unwritten": "that nobody wrote",
    "no wait": "that nobody wrote",
    "divergent barrier": "has ended",
    "two barriers": "is at a barrier in ",
    "divergent mma": "has ended",
    "two mma": "is at an mma in ",
    "misaligned vec8": "a misaligned address for 16 bytes",
    "misaligned vec4": "a misaligned address for 8 bytes",
    "misaligned store": "a misaligned address for 16 bytes",
    "misaligned shared": "word 2 of shared memory for 16 bytes",
    "misaligned copy": "a misaligned address for 16 bytes",
    "second wave": "waits for ever",
    "no blocks": "a grid of 0 blocks",
    "too many threads": "2048 threads a block",
    "no whole warps": "48 threads a block",
    "too much shared memory": "131072 bytes of shared memory",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_finds_what_is_wrong_in_a_kernel(emulator, fault):
    for order in range(3):
        with pytest.raises(RuntimeError) as found:
            emulator.run_fault(fault, order)
        assert any(fact in str(found.value) for fact in FAULTS[fault].split("|"))


@pytest.mark.parametrize("fault", ["none", "warp barrier", "wait"])
def test_the_emulator_accepts_the_same_kernel_without_fault(emulator, fault):
    assert len({emulator.run_fault(fault, order) for order in range(8)}) == 1


@pytest.mark.parametrize("fault", ["unordered sum", "order of blocks"])
def test_the_emulator_shows_a_sum_that_depends_on_an_order(emulator, fault):
    assert len({emulator.run_fault(fault, order) for order in range(8)}) > 1
