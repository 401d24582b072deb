"""`ftengine tune` on a recipe against its own trials all trained to their end: what both find, and what they take.

python benchmarks/tune_runs.py RECIPE FOLDER [--trials 9] [--set KEY=VALUE] [--set-range KEY=RANGE]
"""

import argparse
import time
from pathlib import Path

from ftengine import Recipe, Shared
from ftengine.api import SilentListener
from ftengine_tune import tune
from ftengine_tune.division import FOLDER, trial_recipe
from ftengine_tune.rungs import every_rung
from ftengine_tune.search import measured
from ftengine_tune.space import parse, with_values
from ftengine_tune.trial import Validations, train_to


class Lines(SilentListener):
    """Prints messages."""

    def message(self, text: str) -> None:
        print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--set-range", dest="ranges", action="append", default=[])
    options = parser.parse_args()
    recipe = Recipe.read(options.recipe, [*options.overrides, f"output={options.folder / 'tuned'}"])
    space = [parse(key, text, key) for key, _, text in (one.partition("=") for one in options.ranges)]
    began = time.monotonic()
    found = tune(recipe, trials=options.trials, space=space, listener=Lines())
    tuned_seconds = time.monotonic() - began
    print(found.statement)
    files = {file.stem: file for file in (options.folder / "tuned" / FOLDER).glob("*.jsonl")}
    shared, whole, began = Shared(), {}, time.monotonic()
    for trial in found.trials:
        own = with_values(recipe, {**trial.values, **every_rung(trial)})
        own = trial_recipe(own, files, options.folder / "whole" / f"{trial.number:03d}")
        losses = options.folder / "whole" / f"{trial.number:03d}.npz"
        train_to(own, losses, None, shared)
        whole[trial.number] = Validations.read(losses).kept(trial.steps[-1], own.train.keep_best)[0]
        print(f"trial {trial.number}, whole: validation loss {whole[trial.number]:.4f}", flush=True)
    best = min(whole, key=whole.__getitem__)
    result = measured(str(options.folder / "whole" / f"{best:03d}"), files["test"])
    whole_seconds = time.monotonic() - began
    assert found.best is not None
    assert found.tested is not None
    assert result is not None
    print(
        f"tune: trial {found.best}, {found.tested.label} {found.tested.tuned.value:.4f} on test, {tuned_seconds:.0f} s"
    )
    print(f"whole runs: trial {best}, {result.label} {result.tuned.value:.4f} on test, {whole_seconds:.0f} s")
    print(f"time {tuned_seconds / whole_seconds:.2f}, steps {found.share:.2f} of the whole runs'")
    print(f"whole runs' validation losses: of tune's choice {whole[found.best]:.4f}, the lowest {whole[best]:.4f}")


if __name__ == "__main__":
    main()
