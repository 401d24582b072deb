"""The CUDA kernels on the host, as five functions of tensors like torch.ops.ftengine's."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor

from ftengine.ops.dropout import dropout_level


def load_module():
    """Return ftengine.ops._emulated_cuda, or the one whose path FTENGINE_EMULATED_MODULE gives; None without one."""
    path = os.environ.get("FTENGINE_EMULATED_MODULE")
    if path is None:
        spec = importlib.util.find_spec("ftengine.ops._emulated_cuda")
    else:
        spec = importlib.util.spec_from_file_location("_emulated_cuda", Path(path))
    if spec is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated_module():
    module = load_module()
    if module is None:
        if os.environ.get("FTENGINE_REQUIRE_EXTENSION") == "1":
            pytest.fail("ftengine.ops._emulated_cuda is not built, and FTENGINE_REQUIRE_EXTENSION=1")
        pytest.skip("ftengine.ops._emulated_cuda is not built: install with FTENGINE_EMULATED=1")
    return module


def operand(tensor: Tensor) -> tuple:
    """Describe a matrix as the module takes it."""
    name = str(tensor.dtype).removeprefix("torch.")
    return (tensor.data_ptr(), name, *tensor.shape, *tensor.stride())


@pytest.fixture
def emulated(emulated_module):
    """Return emulated(order=0): the five operators, with blocks and threads in the random order of that number."""

    def with_order(order: int = 0) -> SimpleNamespace:
        def lowrank_shrink(x, a, p, seed):
            s = x.new_empty(x.shape[0], a.shape[0])
            emulated_module.shrink(order, operand(s), operand(x), operand(a), *dropout(p, seed))
            return s

        def lowrank_expand_(y, s, b, scale):
            emulated_module.expand(order, operand(y), operand(s), operand(b), scale)

        def lowrank_backward_output(dy, s, b, scale):
            ds, db = dy.new_empty(s.shape), b.new_empty(b.shape)
            emulated_module.backward_output(order, *map(operand, (ds, db, dy, s, b)), scale)
            return ds, db

        def lowrank_backward_input_(dx, x, ds, a, p, seed):
            da = a.new_empty(a.shape)
            updated = None if dx is None else operand(dx)
            emulated_module.backward_input(order, operand(da), updated, *map(operand, (x, ds, a)), *dropout(p, seed))
            return da

        def lowrank_merge_(w, a, b, scale):
            emulated_module.merge(order, operand(w), operand(a), operand(b), scale)

        def dropout(p, seed):
            return dropout_level(p), seed.item() if p else None

        functions = (lowrank_shrink, lowrank_expand_, lowrank_backward_output, lowrank_backward_input_, lowrank_merge_)
        return SimpleNamespace(**{function.__name__: function for function in functions})

    return with_order
