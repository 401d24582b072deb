"""How often intervals over seeds and examples hold the true mean, in simulated worlds.

Each seed answers the same examples: an answer is the example's effect, the seed's, and one of both. The interval of
`ftengine seeds` is set beside that of a single run's examples (a percentile bootstrap of the first seed).

    python benchmarks/seed_intervals.py [--worlds 1000]
"""

import argparse

import numpy as np

from ftengine_builtins.seeds.interval import difference_of_means, seed_figure

RESAMPLES = 300


def draw(rng: np.random.Generator, seeds: int, examples: int, of_seed: float, own: float):
    """Return figures (S,) and resamples (S, B) of seeds whose true mean is 0; `of_seed` in standard errors."""
    effect = of_seed / np.sqrt(examples) * rng.normal(size=(seeds, 1))
    answers = rng.normal(size=examples) + effect + own * rng.normal(size=(seeds, examples))
    weights = rng.poisson(1, size=(RESAMPLES, examples)).astype(float)
    return answers.mean(1), (answers @ weights.T) / weights.sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worlds", type=int, default=1000)
    worlds = parser.parse_args().worlds
    rng = np.random.default_rng(0)
    print("seeds  examples  spread of seeds  holds the mean  one run's interval  false differences of two recipes")
    for seeds in (2, 3, 5, 10):
        for examples in (20, 50, 200):
            for of_seed in (0.0, 1.0, 3.0):
                held = alone = found = 0
                for _ in range(worlds):
                    values, drawn = draw(rng, 2 * seeds, examples, of_seed, 0.3)
                    figure = seed_figure(values[:seeds], drawn[:seeds], examples)
                    held += figure.low <= 0 <= figure.high
                    low, high = np.quantile(drawn[0], [0.025, 0.975])
                    alone += low <= 0 <= high
                    sides = (values[:seeds], values[seeds:])
                    found += difference_of_means(*sides, (drawn[:seeds], drawn[seeds:]), examples).p < 0.05
                shares = [f"{100 * count / worlds:.1f} %" for count in (held, alone, found)]
                print(f"{seeds:5}  {examples:8}  {of_seed:15}  {shares[0]:>14}  {shares[1]:>18}  {shares[2]:>10}")


if __name__ == "__main__":
    main()
