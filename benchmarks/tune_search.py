"""`ftengine tune` on made-up learning curves: how often the truly best trial is dropped, and at what cost.

Nothing trains. A trial has a true loss after each rung; an example's loss is that, times the example's difficulty,
times noise of its own that rungs share in part, so that losses are skewed and paired as real ones are. Searches are of
`ftengine_tune.halving`, of Optuna's pruners where it is installed (MedianPruner with its defaults,
SuccessiveHalvingPruner with min_resource 1 and reduction_factor 3, as the rungs are; trials one after another), and of
whole runs, of as many trials and of as many as the same steps pay for.

    python benchmarks/tune_search.py [--searches 1000] [--pruned 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftengine_tune.halving import RUNGS, compare, ending, rungs_of

STEPS = rungs_of(9)
NOISE, SHARED = 0.5, 0.8


@dataclass(frozen=True)
class World:
    """Trials with true losses (RUNGS, K) and losses of validation examples (RUNGS, K, n)."""

    true: np.ndarray
    losses: np.ndarray

    @property
    def trials(self) -> int:
        return self.true.shape[1]


@dataclass(frozen=True)
class Found:
    """The chosen trial, the steps of all trials as a share, and whether the best one was dropped.

    Args:
        dropped: the trial that is the best in the end.
        dropped_first: a trial that was the best at the rung after which it was dropped.
    """

    trial: int
    share: float
    dropped: bool
    dropped_first: bool = False


def spread(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Final losses that differ by a fifth, as over a wide range of rates."""
    return 0.8 + np.abs(rng.normal(0, 0.2, trials)), np.full(trials, 0.7)


def ties(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """A third equally good, the others worse."""
    return 0.8 + np.where(rng.random(trials) < 1 / 3, 0, rng.exponential(0.2, trials)), np.full(trials, 0.7)


def equal(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """All alike: whatever is dropped is wrong."""
    return np.full(trials, 0.8), np.full(trials, 0.7)


def close(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of a few percent."""
    return 0.8 + np.abs(rng.normal(0, 0.03, trials)), np.full(trials, 0.7)


def crossing(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Some learn twice as fast as others, whatever they come to: what is best early need not be in the end."""
    return 0.8 + np.abs(rng.normal(0, 0.2, trials)), rng.uniform(0.5, 1.0, trials)


WORLDS: dict[str, Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]] = {
    world.__name__: world for world in (spread, ties, equal, close, crossing)
}


def drawn(name: str, trials: int, examples: int, rng: np.random.Generator) -> World:
    """Draw a world of a kind."""
    final, rate = WORLDS[name](rng, trials)
    true = np.stack([final + (2.0 - final) * 0.6 * np.exp(-rate * step) for step in STEPS])
    difficulty, own = rng.gamma(1.0, 1.0, examples), rng.normal(size=(trials, examples))
    losses = []
    for row in true:
        own = SHARED * own + np.sqrt(1 - SHARED**2) * rng.normal(size=own.shape)
        losses.append(row[:, None] * difficulty * np.exp(NOISE * own - NOISE**2 / 2))
    return World(true, np.stack(losses))


def halving(world: World) -> Found:
    """Search as `ftengine tune` does."""
    alive, steps, first = np.arange(world.trials), 0, False
    best = world.true[-1].argmin()
    for rung, (now, before) in enumerate(zip(STEPS, (0, *STEPS), strict=False), 1):
        steps += len(alive) * (now - before)
        if rung == RUNGS:
            break
        losses = world.losses[rung - 1][alive]
        surely = np.array([result.surely for result in compare(losses, np.arange(losses.shape[1]), world.trials)])
        first |= bool(surely[world.true[rung - 1][alive].argmin()])
        left = alive[~surely]
        if ending(rung, len(left), int(surely.sum())):
            chosen = left[world.losses[rung - 1][left].mean(1).argmin()]
            return Found(int(chosen), _share(steps + STEPS[-1] - now, world), best not in left, first)
        alive = left
    chosen = alive[world.losses[-1][alive].mean(1).argmin()]
    return Found(int(chosen), _share(steps, world), best not in alive, first)


def whole(world: World) -> Found:
    """Train all trials to their end."""
    return Found(int(world.losses[-1].mean(1).argmin()), 1.0, False)


def fewer(world: World, share: float) -> Found:
    """Train as many trials to their end as a share of the steps pays for."""
    count = max(1, round(share * world.trials))
    chosen = world.losses[-1][:count].mean(1).argmin()  # in random order, as the world is
    return Found(int(chosen), count / world.trials, world.true[-1].argmin() >= count)


def pruned(world: World, make: Callable[[], object]) -> Found:
    """Search with one of Optuna's pruners."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, steps, ended = optuna.create_study(pruner=make()), 0, []
    for number in range(world.trials):
        trial, before = study.ask(), 0
        for rung, now in enumerate(STEPS):
            steps, before = steps + now - before, now
            trial.report(float(world.losses[rung][number].mean()), now)
            if rung < RUNGS - 1 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(world.losses[-1][number].mean()))
            ended.append(number)
    chosen = ended[int(world.losses[-1][ended].mean(1).argmin())]
    return Found(chosen, _share(steps, world), world.true[-1].argmin() not in ended)


def _share(steps: int, world: World) -> float:
    return steps / (STEPS[-1] * world.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--pruned", type=int, default=100, help="searches with Optuna's pruners, which are slow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args()
    cells: list[dict[str, Any]] = []
    print("Regret is the chosen trial's true loss minus the best one's. First: the best at a rung was dropped there.")
    print("world     trials  examples  search              steps  regret  best dropped  first")
    for name in WORLDS:
        for trials in (9, 27):
            for examples in (50, 200, 1000):
                rows: dict[str, list[tuple[float, Found]]] = {}
                rng = np.random.default_rng((trials, examples))
                for count in range(options.searches):
                    world = drawn(name, trials, examples, rng)
                    found = {"ftengine tune": halving(world), "whole runs": whole(world)}
                    found["fewer whole runs"] = fewer(world, found["ftengine tune"].share)
                    if count < options.pruned and examples == 200:
                        found |= {pruner: pruned(world, make) for pruner, make in _pruners().items()}
                    for search, one in found.items():
                        regret = float(world.true[-1][one.trial] - world.true[-1].min())
                        rows.setdefault(search, []).append((regret, one))
                for search, results in rows.items():
                    share, lost, first = (
                        np.mean([getattr(one, key) for _, one in results])
                        for key in ("share", "dropped", "dropped_first")
                    )
                    regret = np.mean([regret for regret, _ in results])
                    cell = {"world": name, "trials": trials, "examples": examples, "search": search}
                    cell |= {"searches": len(results), "steps": float(share), "regret": float(regret)}
                    cells.append(cell | {"best dropped": float(lost), "first": float(first)})
                    print(
                        f"{name:8}  {trials:6}  {examples:8}  {search:18}  {share:5.2f}  {regret:6.4f}  {lost:12.1%}  "
                        f"{f'{first:.1%}' if search == 'ftengine tune' else '':>5}",
                        flush=True,
                    )
    if options.json is not None:
        options.json.write_text(f"{json.dumps(cells, indent=1)}\n", encoding="utf-8")


def _pruners() -> dict[str, Callable[[], object]]:
    try:
        from optuna.pruners import MedianPruner, SuccessiveHalvingPruner
    except ModuleNotFoundError:
        return {}
    return {
        "MedianPruner": MedianPruner,
        "SuccessiveHalving": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    }


if __name__ == "__main__":
    main()
