"""How often the 95 % intervals hold the truth, in simulations of what is evaluated in practice.

Language: lengths are lognormal (σ = 1: the longest of 20 examples is some 6 times the median), the loss of
an example depends on its length and on how hard it is for both models; tuned is 8 % better. Classes: five of
unequal frequency; base and tuned are right on 90 % each, together more often than chance, so that each
"better" or "worse" is a false alarm.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ftengine.api import EvaluationContext, Labels
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine_builtins.evaluators.classification import Classification
from ftengine_builtins.evaluators.language import Perplexity

MEASURED = {
    "loss": {20: 0.941, 50: 0.939, 200: 0.937},
    "loss difference": {20: 0.953, 50: 0.930, 200: 0.936},
    "perplexity": {20: 0.941, 50: 0.939, 200: 0.937},
    "perplexity difference": {20: 0.950, 50: 0.940, 200: 0.935},
    "accuracy": {20: 0.959, 50: 0.965, 200: 0.959},
    "accuracy difference": {20: 0.993, 50: 0.974, 200: 0.953},
    "macro_f1": {20: 0.910, 50: 0.936, 200: 0.956},
    "macro_f1 difference": {20: 0.963, 50: 0.974, 200: 0.961},
}
"""Share of 2,000 simulated sets whose interval held the truth, by examples in the set. Plain percentiles give
0.88 for an accuracy of 0.9 on 20 examples and 0.92 for these losses. Macro F1 of 20 examples suffers from
labels that are missing by chance. Verdicts were false alarms in 0.3 %, 2.6 % and 4.4 % of the sets."""

FREQUENCIES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])


def accumulate(evaluator, context, predictions, seed):
    accumulator = Accumulator([evaluator], context, 1000, seed)
    for index, prediction in enumerate(predictions):
        accumulator.update(index, prediction)
    return accumulator


def language(n, seed):
    """Return (base, tuned, truth by metric, true difference by metric)."""
    rng = np.random.default_rng([n, seed])
    size, hardness = rng.normal(size=(2, n))
    tokens = np.exp(3 + size)
    base = np.exp(0.9 - 0.1 * size + 0.4 * hardness)
    tuned = base * np.exp(rng.normal(-0.1, 0.2, n))
    both = [
        accumulate(
            Perplexity(),
            EvaluationContext("language"),
            [{"loss": x * t, "tokens": t} for x, t in zip(loss, tokens, strict=True)],
            seed,
        )
        for loss in (base, tuned)
    ]
    # E[loss · tokens] / E[tokens] of the lognormals above.
    loss = math.exp(0.9 + 0.4**2 / 2 + (0.9**2 - 1) / 2)
    factor = math.exp(-0.1 + 0.2**2 / 2)
    return (
        *both,
        {"loss": loss, "perplexity": math.exp(loss)},
        {"loss": loss * (factor - 1), "perplexity": math.exp(loss * factor) - math.exp(loss)},
    )


def classes(n, seed):
    """Return (base, tuned, truth by metric, true difference by metric)."""
    rng = np.random.default_rng([n, seed])
    label = rng.choice(5, n, p=FREQUENCIES)
    shared, alone = rng.random((2, n))
    together = rng.random(n) < 0.5
    context = EvaluationContext("classes", Labels("single", tuple("abcde")))
    both = []
    luck_of_both = shared, np.where(together, shared, alone)
    for luck, other in zip(luck_of_both, rng.integers(1, 5, (2, n)), strict=True):
        guess = np.where(luck < 0.9, label, (label + other) % 5)
        predictions = [{"label": int(y), "predicted": int(p)} for y, p in zip(label, guess, strict=True)]
        both.append(accumulate(Classification(), context, predictions, seed))
    predicted = 0.9 * FREQUENCIES + 0.1 * (1 - FREQUENCIES) / 4
    f1 = (2 * 0.9 * FREQUENCIES / (FREQUENCIES + predicted)).mean()
    return *both, {"accuracy": 0.9, "macro_f1": f1}, {"accuracy": 0.0, "macro_f1": 0.0}


def simulate(world, n, runs):
    """Return {figure: sets whose interval held the truth} and the number of verdicts by metric."""
    held, verdicts = {}, {}
    for seed in range(runs):
        base, tuned, truth, gap = world(n, seed)
        differences = compare(base, tuned)
        results = base.results()
        for name in truth:  # these predictions have no scores to rank by
            metric = results[name]
            held[name] = held.get(name, 0) + (metric.low <= truth[name] <= metric.high)
            d = differences[name]
            held[f"{name} difference"] = held.get(f"{name} difference", 0) + (d.low <= gap[name] <= d.high)
            verdicts[name] = verdicts.get(name, 0) + (d.better is not None)
    return held, verdicts


@pytest.mark.parametrize(("n", "runs"), [(20, 200), (50, 200), (200, 100)])
@pytest.mark.parametrize("world", [language, classes])
def test_intervals_hold_the_truth_as_often_as_measured(world, n, runs):
    held, verdicts = simulate(world, n, runs)
    for figure, count in held.items():
        assert count >= stats.binom.ppf(0.001, runs, MEASURED[figure][n]), figure
    if world is classes:
        for metric, count in verdicts.items():
            assert count <= stats.binom.isf(0.001, runs, 0.05), metric
