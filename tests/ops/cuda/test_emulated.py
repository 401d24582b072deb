"""The CUDA kernels and their launches, run by the host: right, exact about masks, and the same in any order."""

import itertools
from dataclasses import astuple, dataclass

import pytest
import torch
from torch import Tensor

from ftengine.ops import quantise_dropout
from ftengine.ops.dropout import dropout_level
from ftengine.ops.philox import keep_mask

SCALE = 1.5
SEED = torch.tensor(0x1234_5678_9ABC_DEF0)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# M, K, N. Warps take 16 rows and 64 columns, blocks of shrink 32 rows, blocks of the others up to 512 columns and 64
# rows; shrink divides K from 1024 on. Sizes that are no multiple of 8 take the unaligned loads.
SHAPES = [
    (1, 8, 8),
    (5, 7, 9),
    (37, 1100, 75),
    (70, 136, 584),
    (130, 1032, 64),
]


@dataclass
class Operands:
    """x, dx (M, K), y, dy (M, N), w (N, K); s, ds (M, r), a (r, K), b (N, r)."""

    x: Tensor
    dx: Tensor
    y: Tensor
    dy: Tensor
    w: Tensor
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
        large = (torch.randn(size).to(dtype) for size in ((m, k), (m, k), (m, n), (m, n), (n, k)))
        s, ds = (torch.randn(m, r).to(dtype) for _ in range(2))
        a, b = torch.randn(r, k) / max(k, 1) ** 0.5, torch.randn(n, r) / r**0.5
        return Operands(*large, s, ds, a.to(factor_dtype or dtype), b.to(factor_dtype or dtype))

    return make


def run(ops, o: Operands, p=0.0, seed=None) -> dict[str, Tensor]:
    """Return what every operator computes, by name."""
    y, dx, w = o.y.clone(), o.dx.clone(), o.w.clone()
    s = ops.lowrank_shrink(o.x, o.a, p, seed)
    ops.lowrank_expand_(y, o.s, o.b, SCALE)
    ds, db = ops.lowrank_backward_output(o.dy, o.s, o.b, SCALE)
    da = ops.lowrank_backward_input_(dx, o.x, o.ds, o.a, p, seed)
    da_alone = ops.lowrank_backward_input_(None, o.x, o.ds, o.a, p, seed)
    assert torch.equal(da_alone, da)
    ops.lowrank_merge_(w, o.a, o.b, SCALE)
    return {"s": s, "y": y, "ds": ds, "db": db, "da": da, "dx": dx, "w": w}


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
        "w": o.w + SCALE * (b @ a),
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
    check(emulated(1), operands(*shape, 8, dtype, torch.float32), p)


@pytest.mark.parametrize("rank", [1, 8, 16, 17, 64, 100, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rank(operands, emulated, rank, dtype):
    check(emulated(2), operands(33, 72, 80, rank, dtype), 0.25)


@pytest.mark.parametrize(("dtype", "factor_dtype"), itertools.product(DTYPES, [*DTYPES, torch.float64]))
def test_factors_of_any_dtype(operands, emulated, dtype, factor_dtype):
    check(emulated(3), operands(9, 24, 40, 5, dtype, factor_dtype), 0.25)


@pytest.mark.parametrize("shape", [(0, 8, 16), (3, 0, 16), (3, 16, 0), (0, 0, 0)])
def test_empty_sizes_give_zeros(operands, emulated, shape):
    o = operands(*shape, 4, torch.bfloat16, torch.float32)
    results = run(emulated(), o, 0.25, SEED)
    if shape[0] == 0:
        assert not results["da"].any()
        assert not results["db"].any()
    if shape[1] == 0:
        assert not results["s"].any()
    if shape[2] == 0:
        assert not results["ds"].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_addresses_do_not_matter(operands, emulated, dtype):
    """Small operands of any strides; large ones whose rows do not begin at multiples of 16 bytes."""

    def shifted(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    def strided(t):
        return torch.stack([t.T, torch.full_like(t.T, float("nan"))], -1)[..., 0].T

    o = operands(20, 72, 40, 5, dtype)
    moved = Operands(*map(shifted, (o.x, o.dx, o.y, o.dy, o.w)), *map(strided, (o.s, o.ds, o.a, o.b)))
    assert not moved.a.is_contiguous()
    assert moved.x.data_ptr() % 16
    plain, odd = run(emulated(), o, 0.25, SEED), run(emulated(), moved, 0.25, SEED)
    assert all(torch.equal(odd[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [75, 136])
@pytest.mark.parametrize("p", [1 / 65536, 0.05, 0.5, 65535 / 65536])
def test_masks_are_those_of_the_specification(emulated, dtype, k, p):
    rows, p = 37, quantise_dropout(p)
    mask = keep_mask(SEED, dropout_level(p), 0, rows, k).bool()
    x, identity, dx = torch.ones(rows, k).to(dtype), torch.eye(k).to(dtype), torch.zeros(rows, k).to(dtype)
    assert torch.equal(emulated().lowrank_shrink(x, identity, p, SEED) != 0, mask)
    da = emulated().lowrank_backward_input_(dx, x, x, identity, p, SEED)
    assert torch.equal(dx != 0, mask)
    assert torch.equal(da != 0, mask.any(0).expand(k, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_dropped_elements_contribute_nothing(operands, emulated, dtype, poison):
    o, p = operands(20, 72, 40, 5, dtype), 0.5
    mask = keep_mask(SEED, dropout_level(p), 0, *o.x.shape).bool()
    clean = run(emulated(), o, p, SEED)
    o.x = torch.where(mask, o.x, poison)
    poisoned = run(emulated(), o, p, SEED)
    assert all(torch.equal(poisoned[name], clean[name]) for name in ("s", "da", "dx"))
    o.ds[:] = poison
    untouched = o.dx.clone()
    emulated().lowrank_backward_input_(untouched, o.x, o.ds, o.a, p, SEED)
    assert torch.equal(untouched[~mask], o.dx[~mask])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results_do_not_depend_on_the_order_of_blocks_and_threads(operands, emulated, dtype):
    o = operands(130, 1100, 600, 20, dtype) if dtype == torch.bfloat16 else operands(70, 136, 600, 5, dtype)
    first, *others = (run(emulated(order), o, 0.25, SEED) for order in (1, 2, 3))
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_host_rounds_as_torch_does(emulated, dtype):
    """The emulator's own conversions; merging into zeros rounds each fp32 value once."""
    bits = torch.arange(-(2**31), 2**31, 65521 * 13, dtype=torch.int64).to(torch.int32)
    ties = torch.arange(0, 2**15, 7, dtype=torch.int32)
    halves = ties.to(torch.int16).view(dtype).float()
    middles = (halves + (ties + 1).to(torch.int16).view(dtype).float()) / 2
    values = torch.cat([bits.view(torch.float32), halves, middles, -middles])
    values = values[values.isfinite()]
    w = torch.zeros(1, len(values), dtype=dtype)
    emulated().lowrank_merge_(w, values[None], torch.ones(1, 1), 1.0)
    assert torch.equal(w[0], values.to(dtype))


FAULTS = {
    "missing barrier": "without a barrier between|that nobody wrote",  # whichever thread comes first
    "write after read": "without a barrier between",
    "out of bounds": r"accesses word 64 of 64",
    "unwritten": "that nobody wrote",
    "divergent barrier": "waits for ever at a barrier",
    "divergent mma": "waits for ever at an mma",
    "misaligned octet": "a misaligned address",
}


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_finds_what_is_wrong_in_a_kernel(emulated_module, fault, order):
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        emulated_module.run_fault(fault, order)


def test_the_emulator_accepts_the_same_kernel_without_fault(emulated_module):
    assert len({emulated_module.run_fault("none", order) for order in range(8)}) == 1


def test_the_emulator_shows_a_sum_that_depends_on_the_order_of_threads(emulated_module):
    assert len({emulated_module.run_fault("unordered sum", order) for order in range(8)}) > 1
