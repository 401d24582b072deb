"""The compiled CPU kernels, each instruction set: equal masks, the reference's accuracy, the same bits again."""

import itertools
import threading

import pytest
import torch
from expected import raises

from ftengine.ops import instruction_sets, reference, use_instruction_set
from ftengine.ops.philox import keep_mask

ops = torch.ops.ftengine
FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Around every edge: no rows, one, none of a vector's size, more than one tile of rows (64) and of columns (1024).
SHAPES = [(0, 8, 8, 2), (1, 1, 1, 1), (7, 13, 11, 1), (65, 129, 33, 17), (130, 64, 1100, 8), (3, 2049, 40, 256)]
SHAPES += [(20, 8, 1088, 2), (3, 8, 2304, 5), (9, 8, 0, 2)]  # chunks of b, and none


class Problem:
    """Operands of all five operators, some in awkward strides, and what an implementation makes of them."""

    def __init__(self, m, k, n, r, dtype, factor_dtype, p, strided=False, seed=0):
        torch.manual_seed(seed)

        def large(*shape):
            return torch.randn(shape, dtype=torch.float64).to(dtype)

        def small(rows, columns, over, kind):
            value = (torch.randn(rows, columns, dtype=torch.float64) / over**0.5).to(kind)
            return value.repeat(1, 2)[:, :columns] if strided else value

        self.x, self.dx, self.y, self.dy, self.w = large(m, k), large(m, k), large(m, n), large(m, n), large(n, k)
        self.a, self.b = small(r, k, k, factor_dtype), small(n, r, r, factor_dtype)
        self.s, self.ds = small(m, r, 1, dtype), small(m, r, 1, dtype)
        self.p, self.seed = p, torch.tensor(2**63 - 1 - seed) if p else None

    def run(self, module, convert=lambda tensor: tensor):
        """Return each result of the module's operators, operands converted first."""
        dtype = self.x.dtype
        # What is rounded to the large operand's dtype is so in truth, too: that rounding is the contract's, no error.
        a, b, s, ds = (convert(t) for t in (self.a, self.b, self.s, self.ds))
        if convert(self.x).dtype != dtype:
            a, b, s, ds = (convert(t.to(dtype)) for t in (self.a, self.b, self.s, self.ds))
        x, dy = convert(self.x), convert(self.dy)
        dx, y, w = (convert(t).clone() for t in (self.dx, self.y, self.w))
        results = {"s": module.lowrank_shrink(x, a, self.p, self.seed)}
        module.lowrank_expand_(y, s, b, 1.5)
        results["ds"], results["db"] = module.lowrank_backward_output(dy, s, b, 1.5)
        results["da"] = module.lowrank_backward_input_(dx, x, ds, a, self.p, self.seed)
        module.lowrank_merge_(w, convert(self.a), convert(self.b), 1.5)
        return results | {"y": y, "dx": dx, "w": w}

    def check(self):
        ours, plain = self.run(ops), self.run(reference)
        truth = self.run(reference, torch.Tensor.double)
        magnitude = self.run(reference, lambda tensor: tensor.double().abs())
        for name, k in ours.items():
            p, r = plain[name], truth[name]
            assert (k.shape, k.dtype) == (p.shape, p.dtype), name
            assert k.is_contiguous(), name
            if k.numel() == 0:
                continue
            # The reference may be lucky: a term's own roundings in fp32 (product, sum, scale, result, eps / 2 each of
            # the sum of magnitudes), and one of the result to its dtype.
            fp32 = torch.finfo(torch.float32).eps
            floor = 2 * fp32 * magnitude[name].max() + torch.finfo(k.dtype).eps * r.abs().max()
            error, allowed = (k.double() - r).abs().max(), 2 * (p.double() - r).abs().max() + floor
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_the_reference(instruction_set, shape, dtype, p):
    for factor_dtype, strided in zip(FACTOR_DTYPES, itertools.cycle((p > 0, p == 0)), strict=False):
        Problem(*shape, dtype, factor_dtype, p, strided).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", [1, 3277, 32768, 65535])
@pytest.mark.parametrize(("rows", "columns"), [(5, 200), (3, 7), (130, 1), (70, 1300)])
def test_mask_is_the_specified_one_bit_for_bit(instruction_set, rows, columns, level, dtype):
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF):
        key = torch.tensor(seed)
        dx, x = torch.zeros(rows, columns, dtype=dtype), torch.ones(rows, columns, dtype=dtype)
        ones = torch.ones(rows, 1), torch.ones(1, columns)
        da = ops.lowrank_backward_input_(dx, x, *ones, level / 65536, key)
        mask = keep_mask(key, level, 0, rows, columns).bool()
        assert torch.equal(dx != 0, mask)
        assert torch.equal(da != 0, mask.any(0, keepdim=True))
        # S of a row of ones and a column of the identity is the mask as well.
        unit = torch.zeros(1, columns)
        unit[0, columns // 2] = 1
        assert torch.equal(ops.lowrank_shrink(x, unit, level / 65536, key)[:, 0] != 0, mask[:, columns // 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_a_second_run_nor_the_number_of_threads_changes_a_bit(instruction_set, dtype):
    problem = Problem(200, 1500, 700, 24, dtype, torch.float32, 0.25)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            runs.append(problem.run(ops))
    finally:
        torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(again[name], value) for name, value in runs[0].items())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_elements_count_for_nothing_and_kept_ones_do(instruction_set, dtype, bad):
    key, level = torch.tensor(4), 32768
    x, mask = torch.ones(40, 70, dtype=dtype), keep_mask(key, level, 0, 40, 70).bool()
    x[~mask] = bad
    assert ops.lowrank_shrink(x, torch.ones(3, 70), 0.5, key).isfinite().all()
    assert ops.lowrank_backward_input_(None, x, torch.ones(40, 3), torch.ones(3, 70), 0.5, key).isfinite().all()
    x[mask] = bad
    assert not ops.lowrank_shrink(x, torch.ones(3, 70), 0.5, key).isfinite().any()


def test_bf16_rounds_to_nearest_even_and_keeps_nan(instruction_set):
    y = torch.tensor([[1.0, 1.0, 1.0, float("nan"), float("inf"), 3.0e38]], dtype=torch.bfloat16)
    s, b = torch.ones(1, 1), torch.tensor([[2.0**-8], [3 * 2.0**-8], [2.0**-9], [0.0], [1.0], [3.0e38]])
    ops.lowrank_expand_(y, s, b, 1.0)
    expected = torch.tensor([[1.0, 1 + 2.0**-6, 1.0, float("nan"), float("inf"), float("inf")]], dtype=torch.bfloat16)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)


def test_subnormal_numbers_are_kept_or_count_as_zeros(instruction_set):
    tiny = torch.full((1, 8), 1e-39, dtype=torch.bfloat16)
    s = ops.lowrank_shrink(tiny, torch.full((1, 8), 2.0**100), 0.0, None)
    # The processor's own products of bf16 take them for zeros.
    expected = 0.0 if instruction_set == "avx512bf16" else 8 * tiny[0, 0].double() * 2.0**100
    torch.testing.assert_close(s.double(), torch.full((1, 1), float(expected), dtype=torch.float64), rtol=2**-8, atol=0)


@pytest.mark.slow
def test_choosing_another_instruction_set_meanwhile_does_no_harm():
    sets = instruction_sets()
    if len(sets) < 2:
        pytest.skip("there is one instruction set or none")
    x, a = torch.randn(64, 256, dtype=torch.bfloat16), torch.randn(8, 256)
    expected = reference.lowrank_shrink(x, a, 0.0, None).float()
    done = threading.Event()

    def choose():
        while not done.is_set():
            for name in sets:
                with use_instruction_set(name):
                    pass

    chooser = threading.Thread(target=choose)
    chooser.start()
    try:
        for _ in range(2000):
            torch.testing.assert_close(ops.lowrank_shrink(x, a, 0.0, None).float(), expected, rtol=2**-6, atol=2**-4)
    finally:
        done.set()
        chooser.join()


NO_SEED = torch.empty(0, dtype=torch.int64)


def freed(tensor, size=0):
    """Return a tensor whose storage has been cut down under it."""
    tensor.untyped_storage().resize_(size)
    return tensor


def wide(t):
    """Return lists of two layers, of rank 200 each."""
    return [t.w] * 2, [None] * 2, [torch.zeros(200, 8)] * 2, [torch.zeros(6, 200)] * 2, [1.0] * 2


WRONG = [
    ("a must have two dimensions", lambda t: ops.lowrank_shrink(t.x, torch.zeros(()), 0.0, None)),
    ("b must have two dimensions", lambda t: ops.lowrank_expand_(t.y, t.s, torch.zeros(6), 1.0)),
    ("rank is 257", lambda t: ops.lowrank_shrink(t.x, torch.zeros(257, 8), 0.0, None)),
    ("x is Double", lambda t: ops.lowrank_shrink(t.x.double(), t.a, 0.0, None)),
    ("x must have two dimensions", lambda t: ops.lowrank_shrink(t.x[0], t.a, 0.0, None)),
    ("x must be contiguous", lambda t: ops.lowrank_shrink(t.x.T, torch.zeros(2, 4), 0.0, None)),
    ("a must be (2, 8)", lambda t: ops.lowrank_shrink(t.x, t.a[:, :7], 0.0, None)),
    ("a multiple of 1/65536", lambda t: ops.lowrank_shrink(t.x, t.a, 0.1, torch.tensor(1))),
    ("a multiple of 1/65536", lambda t: ops.lowrank_shrink(t.x, t.a, 1.0, torch.tensor(1))),
    ("needs a seed", lambda t: ops.lowrank_shrink(t.x, t.a, 0.5, None)),
    ("int64 tensor", lambda t: ops.lowrank_shrink(t.x, t.a, 0.5, torch.tensor(1.0))),
    ("y must be contiguous", lambda t: ops.lowrank_expand_(t.y.T.contiguous().T, t.s, t.b, 1.0)),
    ("s must be (4, 2)", lambda t: ops.lowrank_expand_(t.y, t.s[:3], t.b, 1.0)),
    ("s must be (4, 2)", lambda t: ops.lowrank_backward_output(t.dy, t.s.T, t.b, 1.0)),
    ("dx and x must agree", lambda t: ops.lowrank_backward_input_(t.dx[:3], t.x, t.ds, t.a, 0.0, None)),
    ("dx and x must agree", lambda t: ops.lowrank_backward_input_(t.dx.bfloat16(), t.x, t.ds, t.a, 0.0, None)),
    ("b must be (6, 2)", lambda t: ops.lowrank_merge_(t.w, t.a, t.b[:5], 1.0)),
    ("x needs 128 bytes of storage; its storage has 0", lambda t: ops.lowrank_shrink(freed(t.x), t.a, 0.0, None)),
    ("b needs 48 bytes of storage; its storage has 8", lambda t: ops.lowrank_expand_(t.y, t.s, freed(t.b, 8), 1.0)),
    ("dx needs", lambda t: ops.lowrank_backward_input_(freed(t.dx), t.x, t.ds, t.a, 0.0, None)),
    ("s needs", lambda t: ops.lowrank_backward_output(t.dy, freed(t.s), t.b, 1.0)),
    ("weight needs", lambda t: ops.lowrank_forward(t.x, freed(t.w), None, t.a, t.b, 1.0, 0.0, None)),
    ("bias must be (6,)", lambda t: ops.lowrank_forward(t.x, t.w, t.x[0], t.a, t.b, 1.0, 0.0, None)),
    ("dy must be (4, 6)", lambda t: ops.lowrank_backward(t.x, t.x, t.s, NO_SEED, t.w, t.a, t.b, 1.0, 0.0, True)),
    ("ranks add up to 400", lambda t: ops.lowrank_group_forward(t.x, *wide(t), 0.0, None)),
    ("no dtype of low-rank factors", lambda t: ops.lowrank_merge_(t.w, t.a.int(), t.b, 1.0)),
]


@pytest.mark.parametrize(("message", "call"), WRONG)
def test_what_would_read_past_an_end_is_refused(instruction_set, message, call):
    with raises(RuntimeError, message):
        call(Problem(4, 8, 6, 2, torch.float32, torch.float32, 0.0))
