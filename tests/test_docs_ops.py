"""docs/installation.md tells which layers take a kernel, and the example of a strategy with them works."""

import pytest
import torch
from docs_commands import ROOT, table
from scaled import Scaled

from ftengine import testing
from ftengine.model import state_tensors
from ftengine.ops.eligibility import why_ineligible

pytestmark = pytest.mark.slow

INSTALLATION = ROOT / "docs" / "installation.md"


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


def test_the_example_keeps_its_random_buffers_and_leaves_the_head_out():
    loaded = testing.fixture("sequence-classification").load()
    Scaled().prepare(loaded)
    heads = tuple(f"{path}." for path in loaded.new_modules)
    assert heads
    own = {name.rpartition(".")[2] for name in state_tensors(loaded.module) if not name.startswith(heads)}
    assert own == {"a", "b", "d"}
    assert not any(f"{name}.".startswith(heads) for name, part in loaded.module.named_modules() if hasattr(part, "d"))
