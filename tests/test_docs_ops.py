"""docs/plugins/abilities.md tells the operations as they are called, and its strategy that uses them works."""

import inspect
import re

import pytest
from docs_commands import ROOT, blocks, table

from ftengine import ops, testing
from ftengine.model import state_tensors

ABILITIES = ROOT / "docs" / "plugins" / "abilities.md"


def test_every_operation_is_told_as_it_is_called():
    told = table(ABILITIES, "`ftengine.ops`").names()
    assert sorted(name.partition("(")[0] for name in told) == sorted(ops.__all__)
    for name, given in re.findall(r"^(\w+)\((.+)\)$", "\n".join(told), re.MULTILINE):
        own = inspect.signature(getattr(ops, name)).parameters.values()
        arguments = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in own]
        assert ", ".join(arguments).replace("'", '"').startswith(given), name


@pytest.fixture(scope="module")
def strategy():
    """The class of the example that adds modules."""
    (block,) = [block for block in blocks(ABILITIES, "python") if "lowrank_linear" in block.text]
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
