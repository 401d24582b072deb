"""Liger's kernels without a GPU: Triton's interpreter runs them in NumPy, with two functions that it lacks.

It knows nothing of CUDA's libdevice, leaves numbers of Python as they are where a kernel asks their type, and cuts
bfloat16 off in place of rounding it; so float32 and float16 are what can be tested with it. Triton reads once, where it
is imported, whether it interprets: `TRITON_INTERPRET=1 pytest`.
"""

import os
from functools import partial

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def _interpreter():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("run these tests with TRITON_INTERPRET=1")
    import triton.language as tl
    from liger_kernel.ops import geglu, rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def converted(argument):
        if type(argument) is not float:
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_implicit_cvt", converted)
        patch.setattr(rms_norm, "rsqrt", lambda x: 1 / tl.sqrt(x))
        patch.setattr(geglu, "tanh", lambda x: 1 - 2 / (tl.exp(2 * x) + 1))
        yield


@pytest.fixture
def interpreted(_interpreter):
    """Kernels run on a CPU."""


@pytest.fixture
def replaced(interpreted, monkeypatch):
    """PyTorch's own functions are in the kernels' place, which the interpreter takes long for."""
    from ftengine_liger import kernels

    for name, (function, _) in kernels.ACTIVATIONS.items():
        monkeypatch.setitem(kernels.ACTIVATIONS, name, (function, lambda a, b, function=function: function(a) * b))
    monkeypatch.setattr(kernels, "norm_kernel", lambda offset, eps, rounding: partial(rms_norm, offset, eps))


def rms_norm(offset, eps, x, weight):
    """Return (w + offset) ∘ x / sqrt(mean(x²) + eps) by PyTorch's steps, rounded as most models do it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return ((weight + offset) * (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)).to(x.dtype)


@pytest.fixture
def compiled(monkeypatch):
    """Kernels run on a GPU alone, as for users."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
