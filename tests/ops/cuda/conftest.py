"""The CUDA operators on the host, as torch.ops.ftengine_emulated: csrc/cuda's own kernels, launches and checks."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from emulator_build import build_emulator
from toolchain import Unavailable

from ftengine.ops.schemas import LAYER_SCHEMAS, PART_SCHEMAS


@pytest.fixture(scope="session")
def emulator():
    """Return the module _emulated_cuda, or the one whose path EMULATED_CUDA gives, operators defined."""
    try:
        file = Path(os.environ.get("EMULATED_CUDA") or build_emulator())
    except Unavailable as error:
        if os.environ.get("FTENGINE_REQUIRE_EXTENSION") == "1":
            pytest.fail(f"the emulator cannot be compiled, and FTENGINE_REQUIRE_EXTENSION=1: {error}")
        pytest.skip(f"the emulator cannot be compiled: {error}")
    spec = importlib.util.spec_from_file_location("_emulated_cuda", file)
    with torch.library._scoped_library("ftengine_emulated", "DEF") as library:
        for name, schema in (PART_SCHEMAS | LAYER_SCHEMAS).items():
            library.define(name + schema)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def emulated(emulator):
    """Return emulated(order=0, multiprocessors=4): the operators, in that random order, on a device of that size.

    What they allocate begins as NaN.
    """

    def with_order(order=0, multiprocessors=4):
        emulator.use_order(order)
        emulator.use_multiprocessors(multiprocessors)
        return torch.ops.ftengine_emulated

    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield with_order
    torch.use_deterministic_algorithms(False)
