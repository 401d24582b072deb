"""What tests of the low-rank operations compare against."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from ftengine.ops import instruction_sets, use_instruction_set, use_reference
from ftengine.ops.library import use_onednn


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["reference", *instruction_sets(), *["onednn"] * bool(instruction_sets())])
def backend(request):
    """Run a test with the reference, with kernels of every instruction set here, and with all products by oneDNN."""
    ways = {"reference": use_reference, "onednn": lambda: use_onednn(1)}
    with ways.get(request.param, lambda: use_instruction_set(request.param))():
        yield request.param


@pytest.fixture(params=instruction_sets() or [pytest.param(None, marks=pytest.mark.skip("no compiled CPU kernels"))])
def instruction_set(request):
    """Run a test with the kernels of every instruction set that this machine has."""
    with use_instruction_set(request.param):
        yield request.param


@dataclass
class Layer:
    """A frozen layer with its update: x (…, K), weight (N, K), bias (N,), a (r, K), b (N, r), and dy (…, N)."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    dy: Tensor
    scale: float = 1.5

    def to(self, dtype: torch.dtype) -> "Layer":
        cast = (
            None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad)
            for t in (self.x, self.weight, self.bias, self.a, self.b, self.dy)
        )
        return Layer(*cast, self.scale)

    def run(self, function, *arguments) -> list[Tensor]:
        """Return y and the gradients of x, a and b for dy, of y = function(x, weight, bias, a, b, scale, …)."""
        y = function(self.x, self.weight, self.bias, self.a, self.b, self.scale, *arguments)
        return [y.detach(), *torch.autograd.grad(y, (self.x, self.a, self.b), self.dy)]


@pytest.fixture
def layer():
    """Return layer(leading, k, n, r, dtype, factor_dtype) -> Layer."""

    def make(leading, k, n, r, dtype=torch.float32, factor_dtype=None, bias=True) -> Layer:
        factor_dtype = factor_dtype or dtype
        leading = (leading,) if isinstance(leading, int) else leading
        return Layer(
            x=torch.randn(*leading, k, dtype=dtype, requires_grad=True),
            weight=torch.randn(n, k).div_(k**0.5).to(dtype),
            bias=torch.randn(n, dtype=dtype) if bias else None,
            a=torch.randn(r, k).div_(k**0.5).to(factor_dtype).requires_grad_(),
            b=torch.randn(n, r).div_(r**0.5).to(factor_dtype).requires_grad_(),
            dy=torch.randn(*leading, n, dtype=dtype),
        )

    return make


@pytest.fixture
def composition():
    """Return the same layer as five calls of ordinary PyTorch, with the mask given: eager LoRA."""

    def lora(x, weight, bias, a, b, scale, mask=None, p=0.0):
        dropped = x if mask is None else x * mask.to(x.dtype) / (1 - p)
        return linear(x, weight, bias) + linear(linear(dropped, a.to(x.dtype)), b.to(x.dtype)) * scale

    return lora


@pytest.fixture
def assert_as_accurate():
    """Return check(ours, plain, truth): max|ours - truth| <= 2 max|plain - truth| + one unit in the last place.

    plain is the same-dtype PyTorch composition and truth the fp64 one, so no tolerance is picked by hand. The unit is
    that of the largest true value in the dtype of the computation (y's), for where the composition is lucky.
    """

    def check(ours, plain, truth):
        unit = torch.finfo(ours[0].dtype).eps
        for name, k, p, r in zip(("y", "dx", "da", "db"), ours, plain, truth, strict=True):
            assert k.shape == r.shape, name
            assert k.dtype == p.dtype, name
            if r.numel() == 0:
                continue
            error, allowed = (k.double() - r).abs().max(), 2 * (p.double() - r).abs().max() + unit * r.abs().max()
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"

    return check


@pytest.fixture
def whole_mask():
    """Return whole_mask(seed, p, x) -> bool, shaped as x: the mask that the reference applies to x."""
    from ftengine.ops.dropout import dropout_level
    from ftengine.ops.philox import keep_mask

    def make(seed, p, x):
        rows = x.shape[:-1].numel()
        return keep_mask(seed, dropout_level(p), 0, rows, x.shape[-1]).bool().view(x.shape)

    return make
