"""torch.compile(fullgraph=True) traces the layers whole, with operators as opaque calls."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import linear

from ftengine.ops import lowrank_add, lowrank_linear

pytestmark = pytest.mark.slow


def both(x, weight, bias, a, b, scale, p=0.0, seed=None):
    y = lowrank_linear(x, weight, bias, a, b, scale, p, seed)
    return torch.relu(y) + lowrank_add(linear(x, weight), x, a, b, scale, p, seed)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("dtype", "p", "autocast"),
    [
        (torch.float32, 0.0, False),
        (torch.float32, 0.3, False),
        (torch.float32, 0.3, True),
        (torch.float64, 0.3, False),  # not eligible: the reference itself is traced
    ],
)
def test_traced_layers_equal_eager_ones(layer, p, autocast, dtype):
    sample, seed = layer((2, 9), 40, 24, 4, dtype), torch.tensor(3) if p else None
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        eager, traced = sample.run(both, p, seed), sample.run(compiled, p, seed)
    assert [t.dtype for t in traced] == [t.dtype for t in eager]
    torch.testing.assert_close(traced, eager)


def test_inductor_compiles_the_layers(layer):
    sample, seed = layer((2, 9), 40, 24, 4), torch.tensor(3)
    compiled = torch.compile(both, fullgraph=True)
    torch.testing.assert_close(sample.run(compiled, 0.3, seed), sample.run(both, 0.3, seed))


def test_traced_layers_draw_a_fresh_seed_each_time(layer):
    sample = layer(9, 40, 24, 4)
    compiled = torch.compile(lowrank_linear, fullgraph=True, backend="aot_eager")
    assert not torch.equal(sample.run(compiled, 0.5)[0], sample.run(compiled, 0.5)[0])


def test_two_traces_serve_every_number_of_rows(layer):
    # Not with dynamic=True: there torch 2.13 makes `scale` symbolic too, and fails to hand one symbolic float to two
    # autograd.Functions of any kind ("lift_tracked_freevar_to_input should not be called on root SubgraphTracer").
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(both, fullgraph=True, backend=backend)
    for rows in (9, 10, 11, 12):
        sample = layer(rows, 40, 24, 4)
        torch.testing.assert_close(sample.run(compiled, 0.3, torch.tensor(3)), sample.run(both, 0.3, torch.tensor(3)))
    assert backend.frame_count == 2
