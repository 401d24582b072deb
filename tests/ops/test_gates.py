"""silu_mul and rotate: the formulas and their gradients, as accurate as PyTorch's own, in any layout."""

import pytest
import torch
from torch.nn.functional import silu

from ftengine.ops.elementwise import rotate, silu_mul


def results(function, operands, dy):
    y = function(*operands)
    return [y.detach(), *torch.autograd.grad(y, [x for x in operands if x.requires_grad], dy)]


def assert_as_accurate(function, plain, operands, dy):
    """Errors are at most twice those of the composition, and one unit of the result's dtype."""
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in operands]
    found = (
        results(f, *given)
        for f, given in ((function, (operands, dy)), (plain, (operands, dy)), (plain, (doubles, dy.double())))
    )
    for own, other, true in zip(*found, strict=True):
        assert (own.shape, own.dtype) == (other.shape, other.dtype)
        if own.numel():
            error, allowed = (own - true).abs().max(), 2 * (other - true).abs().max()
            assert error <= allowed + torch.finfo(own.dtype).eps * true.abs().max()


def turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 7), (2, 5, 64), (33, 1536)])
def test_a_gate_is_as_accurate_as_the_composition(backend, shape, dtype):
    gate, up, dy = ((4 * torch.randn(shape)).to(dtype) for _ in range(3))
    assert_as_accurate(silu_mul, lambda g, u: silu(g) * u, [gate.requires_grad_(), up.requires_grad_()], dy)


def test_a_gate_of_any_size_is_finite(backend):
    gate = torch.tensor([-1e38, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e38, torch.nan]).requires_grad_()
    y, slope = results(silu_mul, [gate, torch.ones(9)], torch.ones(9))
    assert torch.allclose(y[:-1], silu(gate.detach())[:-1])
    assert y[-1].isnan()
    assert slope[-1].isnan()
    assert torch.isfinite(slope[:-1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["by token", "by head"])
@pytest.mark.parametrize(("batch", "angles", "depth"), [(1, 1, 64), (3, 1, 10), (3, 3, 32)])
def test_a_rotation_is_as_accurate_as_the_composition(backend, batch, angles, depth, layout, dtype):
    x, dy = (torch.randn(batch, 5, 3, depth).to(dtype).transpose(1, 2) for _ in range(2))
    x = (x if layout == "by token" else x.contiguous()).requires_grad_()
    cos, sin = (torch.randn(angles, 5, depth).to(dtype) for _ in range(2))
    assert_as_accurate(rotate, turned, [x, cos, sin], dy)
    assert rotate(x, cos, sin).transpose(1, 2).is_contiguous()


def test_gradients_in_fp64():
    shapes = (2, 3, 4, 6), (2, 4, 6), (2, 4, 6)
    x, cos, sin = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    torch.autograd.gradcheck(lambda y: rotate(y, cos, sin), [x.requires_grad_()])
    torch.autograd.gradcheck(silu_mul, [torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2)])
