"""How often the 95 % intervals hold the truth, in the simulations of benchmarks/coverage.py."""

import importlib.util
import sys
from pathlib import Path

import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MEASURED = {
    "loss": {20: 0.941, 50: 0.939, 200: 0.937},
    "loss difference": {20: 0.953, 50: 0.930, 200: 0.936},
    "perplexity": {20: 0.941, 50: 0.939, 200: 0.937},
    "perplexity difference": {20: 0.950, 50: 0.940, 200: 0.935},
    "accuracy": {20: 0.959, 50: 0.965, 200: 0.959},
    "accuracy difference": {20: 0.993, 50: 0.974, 200: 0.953},
    "macro_f1": {20: 0.910, 50: 0.936, 200: 0.956},
    "macro_f1 difference": {20: 0.963, 50: 0.974, 200: 0.961},
    "roc_auc of 0.99": {50: 0.973},
    "overconfidence at 98 %": {50: 0.942},
}
"""Share of 2,000 simulated sets whose interval held the truth, by examples in the set. Plain percentiles give
0.88 for an accuracy of 0.9 on 20 examples and 0.92 for these losses. Macro F1 of 20 examples suffers from
labels that are missing by chance. Verdicts were false alarms in 0.3 %, 2.6 % and 4.4 % of the sets. The last two
figures are of 600 sets; percentiles alone held the truth of such models, which are hardly ever wrong, in 82 to 88 %."""


@pytest.mark.parametrize(
    ("world", "n", "runs"),
    [("language", 20, 200), ("language", 50, 200), ("language", 200, 100), ("classes", 20, 60)]
    + [
        pytest.param(*one, marks=pytest.mark.slow)
        for one in (("classes", 20, 200), ("classes", 50, 200), ("classes", 200, 100), ("sure", 50, 100))
    ],
)
def test_intervals_hold_the_truth_as_often_as_measured(simulation, world, n, runs):
    for figure, (held, sets) in simulation.coverage(simulation.WORLDS[world], n, runs).items():
        assert sets > runs / 2  # of 20 texts of unequal length, some are worth less than the six that an interval takes
        assert held >= stats.binom.ppf(0.001, sets, MEASURED[figure][n]), figure
        if world == "classes" and figure.endswith("difference"):  # of two models that are equally good
            assert sets - held <= stats.binom.isf(0.001, sets, 0.05), figure
