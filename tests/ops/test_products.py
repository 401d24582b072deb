"""Products of float32 by oneDNN: as accurate as torch's own, in every layout, and only while they are asked for."""

from types import SimpleNamespace

import pytest
import torch
from expected import raises

from ftengine.ops import active_backend, library, products
from ftengine.ops.library import onednn_from, use_onednn
from ftengine.ops.products import products_by_onednn

pytestmark = pytest.mark.skipif(
    active_backend()[0] != "compiled" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="no kernels here"
)


@pytest.fixture
def computed(monkeypatch):
    """Have every product computed so, whatever the processor and however small; whether each was, one by one."""
    seen, suits = [], products._suits
    monkeypatch.setattr(products, "_suits", lambda left, right: seen.append(suits(left, right)) or seen[-1])
    with use_onednn(1):
        yield seen


def layouts(rows, columns):
    """Yield matrices of one shape with whether oneDNN takes them: no row may lie in another, nor elements apart."""
    yield torch.randn(rows, columns), True
    yield torch.randn(columns, rows).t(), True
    yield torch.randn(rows, columns + 3)[:, 2 : columns + 2], True
    yield torch.randn(columns, rows + 3)[:, 1 : rows + 1].t(), True
    yield torch.randn(rows, 2 * columns)[:, ::2], False
    yield torch.randn(rows, 1).expand(rows, columns), False
    yield torch.randn(1, columns).expand(rows, columns), False


CASES = {
    "x w": lambda a, b, c, d: a @ b,
    "linear": lambda a, b, c, d: torch.nn.functional.linear(a, b.t(), c.contiguous()),
    "linear of three dimensions": lambda a, b, c, d: torch.nn.functional.linear(a[None], b.t()),
    "a bias with gaps": lambda a, b, c, d: torch.nn.functional.linear(a, b.t(), c),
    "a matrix is added": lambda a, b, c, d: torch.addmm(d, a, b),
    "factors": lambda a, b, c, d: torch.addmm(c, a, b, beta=0.5, alpha=2),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("m", "k", "n"), [(9, 5, 4), (8, 1, 3), (12, 13, 2), (33, 40, 24), (16, 1536, 8)])
def test_as_accurate_as_torchs_own(computed, case, m, k, n):
    """The error of a sum of K terms grows with its root; oneDNN adds up in one go what MKL adds up in parts."""
    call, bias, whole = CASES[case], torch.randn(2 * n)[::2], torch.randn(m, n)
    for left, left_fits in layouts(m, k):
        for right, right_fits in layouts(k, n):
            computed.clear()
            plain, truth = call(left, right, bias, whole), call(*(x.double() for x in (left, right, bias, whole)))
            with products_by_onednn():
                own = call(left, right, bias, whole)
            assert (own.shape, own.dtype, own.stride()) == (plain.shape, plain.dtype, plain.stride())
            if case in ("x w", "linear") and k > 1:
                assert computed == [left_fits and right_fits]
            error, allowed = (own - truth).norm(), 2 * (plain - truth).norm()
            scale = (left.double().norm() * right.double().norm()) + truth.norm()
            assert error <= allowed + torch.finfo(torch.float32).eps * scale


def test_layers_and_their_gradients_take_it_while_it_is_asked_for(computed):
    layer, x = torch.nn.Linear(24, 16), torch.randn(5, 7, 24, requires_grad=True)
    operands = (x, layer.weight, layer.bias)
    plain = [layer(x), *torch.autograd.grad(layer(x).square().sum(), operands)]
    computed.clear()
    with products_by_onednn():
        with products_by_onednn():
            own = [layer(x)]
        own += torch.autograd.grad(layer(x).square().sum(), operands)
        assert computed == [True] * 4
        assert layer.double()(x.double()).dtype == torch.float64
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        assert computed == [True] * 4 + [False] * (len(computed) - 4)
    for one, other in zip(own, plain, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(KeyError), products_by_onednn():
        raise KeyError
    computed.clear()
    layer.float()(x)
    assert not computed


@pytest.mark.parametrize(
    ("left", "right"),
    [((9, 3), (9, 3)), ((9, 3), (3,)), ((), (3, 2)), ((9, 3), ()), ((2, 9, 3), (3, 2))],
    ids=str,
)
def test_wrong_operands_get_torchs_own_error(computed, left, right):
    left, right, out = torch.randn(left), torch.randn(right), torch.empty(0)
    for own, plain in (
        (lambda: torch.mm(left, right), lambda: torch.mm(left, right, out=out)),
        (lambda: torch.addmm(left, left, right), lambda: torch.addmm(left, left, right, out=out)),
        (lambda: torch.mm(left, right.double()), lambda: torch.mm(left, right.double(), out=out)),
    ):
        with pytest.raises(RuntimeError) as expected:
            plain()
        with products_by_onednn(), raises(RuntimeError, str(expected.value)):
            own()


def test_only_large_ones_are_computed_so_and_only_where_it_is_quicker(monkeypatch):
    least = onednn_from()
    wide = library.instruction_sets()[0].startswith("avx512") and not library._native().is_intel()
    assert least == (library.ONEDNN_FROM if wide and torch.backends.mkl.is_available() else None)
    with use_onednn(1), monkeypatch.context() as patch:
        patch.setattr(library.torch.backends, "mkldnn", SimpleNamespace(enabled=False))
        assert onednn_from() is None
    with use_onednn():
        assert onednn_from() is None
        monkeypatch.setattr(library, "ONEDNN_SCHEMAS", ["another"])
        library._choose_onednn(str(library.FILES["cpu"]))
        assert onednn_from() is None, "an operator with other arguments is not called"
    monkeypatch.setattr(library, "_native", lambda: object())
    assert onednn_from() is None, "kernels compiled before there was a choice"
