"""What is promised to be equal: each strategy and architecture, computed in two ways, comes to the same.

The table is in dimensions.py, what equal means in comparisons.py. `planted.py` shows what each row catches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from cells import ARCHITECTURES, STRATEGIES, Cell
from comparisons import RATIO, ROUNDINGS, ratio, roundings, same_bits
from dimensions import DIMENSIONS, MIXTURES, Way, ways
from planted import FAULTS, Fault, mean_of_means, tail_of_gradient_dropped
from traces import Trace

from ftengine.ops import active_backend

compiled = pytest.mark.skipif(active_backend("cpu")[0] != "compiled", reason=active_backend("cpu")[1])
QUICK = {fault.dimension: fault for fault in reversed(FAULTS)}
"""What `make test` runs of each dimension: its cell with the smallest fault."""
ROUNDS = 2
"""How often each architecture occurs in a dimension, with other strategies each time."""
DRAWS = 3
"""Bases of other weights that a comparison in bfloat16 may take: in one of them attention may stand between two tokens
and rounding decides, which a faulty way would show in each."""
HALVED = ("accumulation", "packing", "grouped-layers", "shared-prefix", "norms", "grouped-keys", "kernels")
"""Dimensions that bfloat16 could enlarge errors in."""


def chosen(name: str, rounds: int = ROUNDS) -> list[Cell]:
    """Return cells of a dimension: each architecture so often, with the strategies that were chosen least."""
    dimension, chosen, turn = DIMENSIONS[name], list[Cell](), list(DIMENSIONS).index(name) % len(STRATEGIES)
    order = [*STRATEGIES][turn:] + [*STRATEGIES][:turn]
    for architecture in [*dimension.architectures] * rounds:
        used = [cell.strategy for cell in chosen]
        fitting = [Cell(s, architecture, dimension.dropout) for s in order if dimension.fits(s, architecture)]
        left = [cell for cell in fitting if cell not in chosen]
        chosen += sorted(left, key=lambda cell: used.count(cell.strategy))[:1]
    return chosen


def marks(name: str, *, slow: bool) -> list[pytest.MarkDecorator]:
    of_kernels = name.startswith(("grouped-layers", "norms", "kernels", "instructions"))
    return [pytest.mark.slow] * slow + [compiled] * of_kernels


SINGLE = [(name, cell) for name in DIMENSIONS for cell in [QUICK[name].cell, *chosen(name)]]
SINGLE = list(dict.fromkeys(SINGLE))
IN_BFLOAT16 = [(name, cell) for name in HALVED for cell in chosen(name, 1)[::2] if cell.architecture not in MIXTURES]
"""A router of experts chooses others where two are near to each other, which is no rounding."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Callable[[str, Way, Cell], Trace]:
    """Run a cell one way, once."""
    folder = tmp_path_factory.mktemp("equal")
    numbers = iter(range(10**6))

    @cache
    def once(key: str, cell: Cell) -> Trace:
        way, fault = found[key]
        return way.run(cell, folder, str(next(numbers)), *([fault.plant] if fault else []))

    found: dict[str, tuple[Way, Fault | None]] = {}

    def of(way: Way, cell: Cell, fault: Fault | None = None) -> Trace:
        # Plain ways are one and the same way, whatever they are compared with.
        key = "plain" if way == Way() and fault is None else f"{way} {fault}"
        found[key] = way, fault
        return once(key, cell)

    return of


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        pytest.param(name, cell, marks=marks(name, slow=cell != QUICK[name].cell), id=f"{name}-{cell}")
        for name, cell in SINGLE
    ],
)
def test_both_ways_come_to_the_same(run, name, cell):
    dimension, (plain, other) = DIMENSIONS[name], ways(name, cell)
    one, two = run(plain, cell), run(other, cell)
    assert two.taken[name] > (one.taken[name] if dimension.more else 0)
    assert dimension.more or not one.taken[name]
    apart, where = (same_bits if dimension.exact else roundings)(one, two)
    assert apart <= ROUNDINGS, where


@pytest.mark.slow
def test_a_run_over_shared_prefixes_goes_on_to_the_same_bits(tmp_path):
    cell, more = Cell("lora", "llama", dropout=True), {"train.fast_paths": "shared-prefix"}
    whole, resumed = (
        Way(DIMENSIONS["resume"].plain.recipe | more, options=options).run(cell, tmp_path, f"run-{len(options)}")
        for options in ({}, {"interrupted_after": 2})
    )
    assert 0 < whole.taken["shared-prefix"] <= resumed.taken["shared-prefix"]
    apart, where = same_bits(whole, resumed)
    assert apart <= ROUNDINGS, where


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            marks=marks(fault.dimension, slow=True),
            id=f"{fault.dimension}-{fault.plant.__name__}",
        )
        for fault in FAULTS
    ],
)
def test_a_planted_fault_is_detected(run, fault):
    dimension, (plain, other) = DIMENSIONS[fault.dimension], ways(fault.dimension, fault.cell)
    one, two = run(plain, fault.cell), run(other, fault.cell, fault)
    apart, _ = (same_bits if dimension.exact else roundings)(one, two)
    assert apart > 2 * ROUNDINGS


@pytest.mark.parametrize(
    ("name", "cell"),
    [pytest.param(name, cell, marks=marks(name, slow=True), id=f"{name}-{cell}") for name, cell in IN_BFLOAT16],
)
def test_in_bfloat16_both_ways_are_as_near_to_float32(run, name, cell):
    found = []
    for draw in range(DRAWS):
        found.append(distance_in_bfloat16(run, name, replace(cell, draw=draw)))
        if found[-1][0] <= RATIO:
            return
    raise AssertionError(found)


SEEN_IN_BFLOAT16 = [fault for fault in FAULTS if fault.plant in (mean_of_means, tail_of_gradient_dropped)]
"""What is wrong by a few per cent or less is as small as rounding there."""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=marks(fault.dimension, slow=True), id=f"{fault.dimension}-{fault.plant.__name__}")
        for fault in SEEN_IN_BFLOAT16
    ],
)
def test_in_bfloat16_a_planted_fault_is_detected(run, fault):
    for draw in range(DRAWS):
        assert distance_in_bfloat16(run, fault.dimension, replace(fault.cell, draw=draw), fault)[0] > RATIO


def distance_in_bfloat16(run, name: str, cell: Cell, fault: Fault | None = None) -> tuple[float, str]:
    plain, other = ways(name, cell)
    half = replace(cell, precision="bfloat16")
    return ratio(run(plain, cell), run(plain, half), run(other, half, fault))


def test_each_dimension_has_a_fault_and_meets_each_strategy_and_architecture_that_it_fits():
    assert {fault.dimension for fault in FAULTS} == set(DIMENSIONS)
    for name, dimension in DIMENSIONS.items():
        cells = chosen(name)
        met = {cell.architecture for cell in cells}, {cell.strategy for cell in cells}
        fits = [(s, a) for s in STRATEGIES for a in ARCHITECTURES if dimension.fits(s, a)]
        assert met == ({a for _, a in fits}, {s for s, _ in fits}), name
