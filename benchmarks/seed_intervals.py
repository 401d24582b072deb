"""How often intervals over seeds and examples hold the true mean, in simulated worlds, and how often seeds deceive.

Each seed answers the same examples: an answer is the example's effect, the seed's, and one of both; an answer of an
accuracy is right where this sum is above a threshold. The interval of `ftengine seeds` is set beside that of a single
run's examples (a percentile bootstrap of the first seed). False differences are those that `compare` supports
(Holm, of three strategies) where strategies differ by their seeds alone.

    python benchmarks/seed_intervals.py --worlds 1000 --json benchmarks/results/seed_intervals.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy

from ftengine.api import Metric
from ftengine.engine.compare import pair_differences
from ftengine.evaluation.figures import ResampledFigure
from ftengine.evaluation.seed_intervals import mean_over_seeds

RESAMPLES = 200
OWN = 0.3
"""Standard deviation of what a seed and an example have together; that of examples is 1."""
STRATEGIES = 3
ACCURACIES = {"mean": None, "accuracy 0.8": 0.8, "accuracy 0.97": 0.97}
SEEDS, EXAMPLES, SPREADS = (2, 3, 5), (50, 200), (0.0, 1.0, 3.0)
"""Spreads of seeds in standard errors of the examples' mean."""


def draw(
    rng: np.random.Generator, weights: np.ndarray, seeds: int, of_seed: float, accuracy: float | None
) -> list[ResampledFigure]:
    """Return the figure of each seed with its resamples, which weigh examples by `weights` (B, n)."""
    examples = weights.shape[1]
    effect = of_seed / np.sqrt(examples) * rng.normal(size=(seeds, 1))
    answers = rng.normal(size=examples) + effect + OWN * rng.normal(size=(seeds, examples))
    if accuracy is not None:
        answers = (answers > threshold(examples, of_seed, accuracy)).astype(float)
    drawn = answers @ weights.T / examples
    metric = Metric("a figure", True, proportion=accuracy is not None)
    trials = None if accuracy is None else examples
    return [
        ResampledFigure(metric, "", float(row.mean()), of, (None, None), examples, examples, trials)
        for row, of in zip(answers, drawn, strict=True)
    ]


def threshold(examples: int, of_seed: float, accuracy: float) -> float:
    """Return the value above which a share `accuracy` of answers is, over all seeds and examples."""
    spread = np.sqrt(1 + OWN**2 + of_seed**2 / examples)
    return float(-spread * scipy.special.ndtri(accuracy))


def cells(worlds: int) -> Iterator[dict[str, Any]]:
    """Yield the shares of each kind of world."""
    rng, labels = np.random.default_rng(0), [SimpleNamespace(label=str(i)) for i in range(STRATEGIES)]
    for kind, seeds, examples, of_seed in product(ACCURACIES, SEEDS, EXAMPLES, SPREADS):
        true = ACCURACIES[kind] or 0.0
        weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=RESAMPLES).astype(float)
        held = alone = found = 0
        for _ in range(worlds):
            figures = draw(rng, weights, STRATEGIES * seeds, of_seed, ACCURACIES[kind])
            sides = [figures[i * seeds : (i + 1) * seeds] for i in range(STRATEGIES)]
            over = mean_over_seeds(sides[0])
            held += over.low <= true <= over.high
            low, high = np.quantile(figures[0].resampled, [0.025, 0.975])
            alone += low <= true <= high
            models = [[SimpleNamespace(figures={"x": figure}) for figure in side] for side in sides]
            found += any(pair.supported for pair in pair_differences(list(zip(labels, models, strict=True)), "x"))
        yield {
            "figure": kind,
            "seeds": seeds,
            "examples": examples,
            "spread of seeds": of_seed,
            "holds": held / worlds,
            "one run's interval": alone / worlds,
            "false differences": found / worlds,
        }


def main() -> None:
    """Print a line for each kind of world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for cell in cells(options.worlds):
        found.append(cell)
        print(
            "  ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in cell.items()
            ),
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"worlds": options.worlds, "cells": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
