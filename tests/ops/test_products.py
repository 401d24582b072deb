"""Products of float32 by oneDNN: as accurate as torch's own, in every layout, and only while they are asked for."""

import pytest
import torch

from ftengine.ops import onednn_from, products, products_by_onednn

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch has no oneDNN here")
COUNT = "products of float32"


@pytest.fixture
def always(monkeypatch):
    """Have every product computed so, whatever the processor and however small it is."""
    monkeypatch.setattr(products, "onednn_from", lambda: 1)


def layouts(rows, columns):
    """Yield matrices of one shape whose rows or columns lie apart, overlap, or begin anywhere."""
    yield torch.randn(rows, columns)
    yield torch.randn(columns, rows).t()
    yield torch.randn(rows, columns + 3)[:, 2 : columns + 2]
    yield torch.randn(columns, rows + 3)[:, 1 : rows + 1].t()
    yield torch.randn(rows, 2 * columns)[:, ::2]
    yield torch.randn(rows, 1).expand(rows, columns)
    yield torch.randn(1, columns).expand(rows, columns)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 5, 4), (2, 1, 3), (7, 13, 1), (33, 40, 24), (0, 4, 3), (3, 0, 4), (2, 4, 0)]
)
def test_as_accurate_as_torchs_own(m, k, n):
    bias, whole = torch.randn(2 * n)[::2], torch.randn(m, n)
    for left in layouts(m, k):
        for right in layouts(k, n):
            cases = (
                lambda a, b, c, d: a @ b,
                lambda a, b, c, d: torch.nn.functional.linear(a, b.t(), c),
                lambda a, b, c, d: torch.nn.functional.linear(a, b.t(), c.contiguous()),
                lambda a, b, c, d: torch.addmm(d, a, b),
                lambda a, b, c, d: torch.addmm(c, a, b, beta=0.5, alpha=2),
                lambda a, b, c, d: torch.nn.functional.linear(a[None], b.t()),
            )
            for case in cases:
                plain, truth = case(left, right, bias, whole), case(*(x.double() for x in (left, right, bias, whole)))
                with products_by_onednn():
                    own = case(left, right, bias, whole)
                assert (own.shape, own.dtype, own.stride()) == (plain.shape, plain.dtype, plain.stride())
                if own.numel():
                    error, allowed = (own - truth).abs().max(), 2 * (plain - truth).abs().max()
                    assert error <= allowed + torch.finfo(torch.float32).eps * truth.abs().max()


@pytest.mark.usefixtures("always")
def test_layers_and_their_gradients_take_it_while_it_is_asked_for():
    layer, x = torch.nn.Linear(24, 16), torch.randn(5, 7, 24, requires_grad=True)
    operands = (x, layer.weight, layer.bias)
    plain = [layer(x), *torch.autograd.grad(layer(x).square().sum(), operands)]
    with products_by_onednn() as counts:
        assert not counts
        y = layer(x)
        assert counts == {COUNT: 1}
        with products_by_onednn() as inner:
            own = [y, *torch.autograd.grad(y.square().sum(), operands)]
        assert (counts[COUNT], inner) == (3, {})
        assert layer.double()(x.double()).dtype == torch.float64
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        assert counts[COUNT] == 3
    for one, other in zip(own, plain, strict=True):
        torch.testing.assert_close(one, other)
    layer.float()(x)
    assert counts[COUNT] == 3
    with pytest.raises(KeyError), products_by_onednn():
        raise KeyError
    with products_by_onednn() as again:
        layer(x)
    assert again == {COUNT: 1}


@pytest.mark.usefixtures("always")
def test_wrong_shapes_and_dtypes_get_torchs_own_error():
    for left, right in ((torch.randn(2, 3), torch.randn(2, 3)), (torch.randn(2, 3), torch.randn(3, 2).double())):
        errors = []
        with pytest.raises(RuntimeError) as plain:
            torch.mm(left, right)
        errors.append(plain)
        with products_by_onednn(), pytest.raises(RuntimeError) as own:
            torch.mm(left, right)
        assert str(own.value) == str(plain.value)


def test_small_products_and_other_processors_keep_torchs_own(instruction_set):
    least = onednn_from()
    assert least is None or instruction_set.startswith("avx512")
    with products_by_onednn() as counts:
        torch.randn(4, 8) @ torch.randn(8, 4)
        assert not counts
        torch.randn(128, 128) @ torch.randn(128, 128)
        assert counts == ({} if least is None else {COUNT: 1})
