"""How often intervals hold the truth and tests raise a false alarm, in the simulations of benchmarks/coverage.py."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def simulation():
    sys.path.append(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def beyond_chance(count, sets, share):
    """Say whether so many of some sets are more than a share of them, in fewer than one of 100 such tests.

    Sets are drawn with seeds 0, 1, …, so nothing differs from run to run. Of 60 sets it takes nine alarms or more:
    these tests find what is far off, and what lies nearer takes the 1,000 sets of `make coverage`.
    """
    return count > stats.binom.isf(0.01, sets, share)


WORLDS = ["independent, 50", "20 groups, ICC 0.3", "20 unequal groups, ICC 0.3", "duplicated, 100"]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_equally_good_models_are_called_different_in_few_sets(simulation, world):
    counts = simulation.simulate(simulation.WORLDS[world], 60, 200, quick=True)
    assert len(counts) > 12
    for name, (so, sets) in counts.items():
        assert sets > 40  # of unequal groups, some sets are worth too few for an interval
        alarms = so if name.startswith("alarm") else sets - so
        assert not beyond_chance(alarms, sets, 0.08 if name.startswith("holds") else 0.06), name


@pytest.mark.slow
def test_rows_of_groups_that_no_column_names_raise_false_alarms(simulation):
    """Taken row by row, a third of the sets in which models are equally good show a difference in loss."""
    unnamed = replace(simulation.WORLDS["20 groups, ICC 0.3"], rows=20, named=False)
    counts = simulation.simulate(unnamed, 60, 200, quick=True)
    assert beyond_chance(*counts["alarm difference: loss"], 0.06)


def test_what_was_simulated_at_large_raises_few_false_alarms(simulation):
    """The committed counts of `make coverage`: at most 6 % of the sets of 20 groups or more."""
    found = json.loads(simulation.RESULTS.read_text())
    assert found["runs"] >= 1000
    assert found["worlds"].keys() == simulation.WORLDS.keys()
    for world, counts in found["worlds"].items():
        if simulation.WORLDS[world].groups >= 20:
            alarms = {name: so / sets for name, (so, sets) in counts.items() if name.startswith("alarm ")}
            assert len(alarms) > 10
            assert max(alarms.values()) <= simulation.MOST, world


@pytest.mark.slow
def test_slices_strategies_folds_and_rules_raise_few_false_alarms(simulation):
    counts = simulation.simulate(simulation.WORLDS["50 unequal groups, ICC 0.3"], 60, 200)
    alarms = {name: found for name, found in counts.items() if name.startswith("alarm")}
    kinds = {"difference:", "slices,", "compare,", "cross-validation:", "training", "rule"}
    assert {name.split()[1] for name in alarms} == kinds
    assert not {name for name, found in alarms.items() if beyond_chance(*found, 0.06)}
    assert not beyond_chance(*(lambda so, sets: (sets - so, sets))(*counts["found loss"]), 0.3)
