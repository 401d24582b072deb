"""torch.ops.ftengine: every operator is well formed, and a compiled kernel takes over from the dispatcher."""

import pytest
import torch

from ftengine.ops import active_backend, attention, elementwise
from ftengine.ops.eligibility import KERNELS
from ftengine.ops.schemas import OPERATORS

SEED = torch.tensor(5)


def tensors(*shapes, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def samples():
    """Yield (operator's name, arguments) for opcheck, in every form that the layers call."""
    for dtype, m, k, n, r, ps in (
        (torch.float32, 5, 24, 16, 4, (0.0, 0.25)),
        (torch.bfloat16, 3, 7, 5, 1, (0.25,)),
        (torch.float32, 0, 8, 8, 2, (0.0,)),
    ):
        x, dx, y = tensors((m, k), (m, k), (m, n), dtype=dtype)
        s, ds = tensors((m, r), (m, r), dtype=dtype)
        a, b = tensors((r, k), (n, r))
        for p, seed in ((p, SEED if p else None) for p in ps):
            yield "lowrank_shrink", (x, a, p, seed)
            yield "lowrank_backward_input_", (dx, x, ds, a, p, seed)
            yield "lowrank_backward_input_", (None, x, ds, a, p, seed)
            yield "lowrank_backward_input", (x, ds, a, p, seed)
        yield "dropout", (x, 0.25, SEED)
        yield "silu_mul", (x, dx)
        yield "silu_mul_backward", (x, dx, x)
        rows, angles = tensors((2, 3, m, 8), (r % 2 + 1, m, 8), dtype=dtype)
        yield "rotate", (rows, angles, angles, r > 1)
        yield "rms_norm", (x, a[0], 1.0, 1e-5)
        yield "rms_norm_backward", (dx, x, a[0], torch.ones(m), 1.0, r > 1)
        q, key, value, lse = tensors((5, 4, n), (5, 2, n), (5, 2, n), (5, 4), dtype=dtype)
        two = torch.tensor([0, 1, 2, 4, 3]), torch.tensor([0, 1, 2, 0, 1, 4, 3]), torch.tensor([[3, 3], [2, 4]])
        yield "attention", (q, key, value, *two, 0.5, r % 4)
        yield "attention_backward", (q, q, key, value, lse.float(), *two, 0.5, r % 4)
        yield "lowrank_expand_", (y, s, b, 0.5)
        yield "lowrank_expand", (y, s, b, 0.5)
        yield "lowrank_backward_output", (y, s, b, 0.5)
        yield "lowrank_merge_", (torch.randn(n, k, dtype=dtype), a, b, 0.5)
        w, (bias, dy) = torch.randn(n, k, dtype=dtype), tensors((n,), (m, n), dtype=dtype)
        s2 = torch.randn(m, 2 * r, dtype=dtype)
        for p, seed in ((p, SEED if p else torch.empty(0, dtype=torch.int64)) for p in ps):
            given = seed if p else None
            yield "lowrank_forward", (x, w, bias, a, b, 0.5, p, given)
            yield "lowrank_group_forward", (x, [w, w], [bias, None], [a, a], [b, b], [0.5, 1.0], p, given)
            yield "lowrank_backward", (dy, x, s, seed, w, a, b, 0.5, p, p > 0)
            lists = [w, w], [a, a], [b, b], [0.5, 1.0]
            yield "lowrank_group_backward", ([dy, dy], x, s2, seed, *lists, p, p > 0)


def registered():
    return {name.removeprefix("ftengine::") for name in torch._C._dispatch_get_all_op_names() if "ftengine::" in name}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registered()))
def test_operator_passes_opcheck(name):
    arguments = [args for sample, args in samples() if sample == name]
    assert arguments, f"torch.ops.ftengine.{name} has no opcheck: add samples for it"
    for args in arguments:
        torch.library.opcheck(getattr(torch.ops.ftengine, name).default, args)


def test_every_operator_of_the_design_is_registered():
    assert registered() == {*vars(OPERATORS), *elementwise.SCHEMAS, *attention.SCHEMAS}


def test_backend_is_what_the_dispatcher_runs():
    """On a device that no library of ours has kernels for: what is asked is the dispatcher, not a list."""
    assert active_backend("xpu") == ("reference", "no compiled library is installed for xpu")
    with torch.library._scoped_library("ftengine", "IMPL") as library:
        for name in KERNELS:
            assert active_backend("xpu")[0] == "reference"
            library.impl(name, lambda *_: None, "XPU")
        assert active_backend("xpu")[0] == "compiled"
    assert active_backend("xpu")[0] == "reference"
