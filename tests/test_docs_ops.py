"""docs/plugins/helpers.md tells the operations as they are called, and its strategy that uses them works."""

import inspect
import re

import pytest
import torch
from docs_commands import ROOT, blocks, table

from ftengine import ops, testing
from ftengine.model import state_tensors
from ftengine.ops.eligibility import why_ineligible

pytestmark = pytest.mark.slow

INSTALLATION = ROOT / "docs" / "installation.md"
HELPERS = ROOT / "docs" / "plugins" / "helpers.md"


def test_every_operation_is_documented_as_it_is_called():
    told = table(HELPERS, "`ftengine.ops`").names()
    assert sorted(name.partition("(")[0] for name in told) == sorted(ops.__all__)
    for name, given in re.findall(r"^(\w+)\((.+)\)$", "\n".join(told), re.MULTILINE):
        own = inspect.signature(getattr(ops, name)).parameters.values()
        arguments = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in own]
        assert ", ".join(arguments).replace("'", '"').startswith(given), name


def test_the_layers_that_take_a_kernel_are_those_that_the_predicate_lets():
    floats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    rows = []
    for device in ("cpu", "cuda", "mps", "xpu"):
        dtypes = [dtype for dtype in floats if why_ineligible(device, dtype, 1) is None]
        if not dtypes:
            continue
        ranks = [rank for rank in range(1000) if why_ineligible(device, dtypes[0], rank) is None]
        sizes = [size for size in range(1, 65) if why_ineligible(device, dtypes[0], 1, columns=(size,)) is None]
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        multiples = "any" if sizes[0] == 1 else f"multiples of {sizes[0]}"
        rows.append([f"`{device}`", names, f"{ranks[0]} to {ranks[-1]}", multiples])
    assert table(INSTALLATION, "Which layers take a kernel").rows == rows


@pytest.fixture(scope="module")
def strategy():
    """The class of the example that adds modules."""
    (block,) = [block for block in blocks(HELPERS, "python") if "lowrank_linear" in block.text]
    names = {"__name__": "example"}
    exec(compile(block.text, block.place, "exec"), names)
    return names["Scaled"]


def test_the_example_that_adds_modules_passes_the_checks(strategy):
    testing.check_component(strategy)


def test_the_example_keeps_its_random_buffers_and_leaves_the_head_out(strategy):
    loaded = testing.fixture("sequence-classification").load()
    strategy().prepare(loaded)
    heads = tuple(f"{path}." for path in loaded.new_modules)
    assert heads
    own = {name.rpartition(".")[2] for name in state_tensors(loaded.module) if not name.startswith(heads)}
    assert own == {"a", "b", "d"}
    assert not any(f"{name}.".startswith(heads) for name, part in loaded.module.named_modules() if hasattr(part, "d"))
