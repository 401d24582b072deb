"""rms_norm: the formula and its gradients, as accurate as PyTorch's own, the same bits with any number of threads."""

import pytest
import torch

from ftengine.ops.elementwise import rms_norm

SHAPES = [(0, 8), (1, 1), (3, 7), (2, 5, 64), (4, 97), (33, 576)]


def results(function, x, weight, dy):
    y = function(x, weight)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), dy)]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_the_composition(backend, shape, dtype, offset):
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight, dy = torch.randn(shape[-1]).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)

    def composition(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight + offset)

    ours = results(lambda *operands: rms_norm(*operands, offset, 1e-5), x, weight, dy)
    plain = results(composition, x, weight, dy)
    truth = results(composition, *(t.detach().double().requires_grad_() for t in (x, weight)), dy.double())
    for own, other, true in zip(ours, plain, truth, strict=True):
        assert (own.shape, own.dtype) == (other.shape, other.dtype)
        if not x.numel():
            assert not own.any()
            continue
        # dx is a difference, which may vanish: its terms are as large as the slope without a norm's own part.
        rstd = (x.detach().double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        terms = (rstd * dy * (weight.detach() + offset)).abs().max()
        error, allowed = (own - true).abs().max(), 2 * (other - true).abs().max()
        assert error <= allowed + 4 * torch.finfo(torch.float32).eps * terms + torch.finfo(dtype).eps * true.abs().max()


def test_gradients_in_fp64():
    operands = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (5,))]
    torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1.0, 0.1), operands)


def test_rows_in_any_layout_and_threads_give_the_same_bits(backend):
    x, weight, dy = torch.randn(600, 130).requires_grad_(), torch.randn(130).requires_grad_(), torch.randn(600, 130)
    alone = results(lambda *operands: rms_norm(*operands, 0.0, 1e-6), x, weight, dy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        strided = x.detach().T.contiguous().T.requires_grad_()
        again = results(lambda *operands: rms_norm(*operands, 0.0, 1e-6), strided, weight, dy.T.contiguous().T)
    finally:
        torch.set_num_threads(before)
    if backend != "reference":  # ATen adds up in another order
        assert all(torch.equal(own, other) for own, other in zip(alone, again, strict=True))
    assert all(torch.allclose(own, other, rtol=1e-4, atol=1e-5) for own, other in zip(alone, again, strict=True))
