"""A search in a folder: begun or continued, and the best trial measured on the test split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ftengine import Experiment, Recipe, RunRecords, load_run, plan, prepare_data, registry_of
from ftengine.api import Listener, SilentListener
from ftengine.errors import InputError, RunError
from ftengine.text import listed
from ftengine_tune.budget import Budget
from ftengine_tune.division import FOLDER, divide, trial_recipe
from ftengine_tune.result import FILE, Tested, Tuning, statement
from ftengine_tune.rungs import Rungs, every_rung
from ftengine_tune.space import Dimension, check_space, default_space, own_values, with_values
from ftengine_tune.trial import NoLosses

BEST = "best.yaml"


def tune(
    recipe: Recipe,
    *,
    trials: int = 9,
    space: Sequence[Dimension] = (),
    sampler: str = "random",
    minutes: float | None = None,
    test: bool = True,
    listener: Listener | None = None,
) -> Tuning:
    """Search for the values with the lowest validation loss, and evaluate the best trial on the test split.

    Trials train a ninth of their steps, then a third, then all; after each of these rungs, those that are surely behind
    another are dropped (`halving.compare`). The search ends early where one is left, or where a rung other than the
    first dropped less than a third: the trial with the lowest loss is then trained to its end. Everything is kept in
    `recipe.output`: tune.json, trials/001 and so on (the runs), losses/ (of validation examples), division/ (the
    splits), best.yaml. The same call continues an interrupted search.

    Args:
        recipe: has a validation and a test split.
        trials: their number.
        space: the search space; by default learning rate, rank and dropout.
        sampler: "random", or "tpe" (Bergstra et al. 2011) by Optuna.
        minutes: time of all trials; when it is up, the best one so far is trained to its end. None: no limit.
        test: whether the best trial is evaluated on the test split.
        listener: receives phases, and a line per trial.

    Raises:
        InputError: recipe, ranges or time are wrong, or the folder holds something else; raised before any training.
            The task gives no losses of single examples; found at the first validation.
        TrainingError: all trials failed.
    """
    listener = listener or SilentListener()
    registry = registry_of()
    require_recipe(recipe, trials, test)
    strategy = registry.get("strategy", recipe.strategy["name"], "strategy")
    space = list(space) or default_space(recipe, strategy.cls.Config)
    check_space(recipe, space, registry)
    asked = {"recipe": recipe.resolved(), "space": [dimension.to_json() for dimension in space]}
    asked = json.loads(json.dumps({**asked, "sampler": sampler, "planned": trials}))  # as it is read again
    folder, limit = Path(recipe.output), None if minutes is None else 60 * minutes
    tuning = Tuning.read(folder)
    if tuning is None:
        tuning, files = begin(recipe, asked, minutes, listener)
    else:
        require_same(folder, tuning, asked)
        files = {file.stem: file for file in (folder / FOLDER).glob("*.jsonl")}
    if tuning.statement:
        return tuning
    groups = independent(recipe, files)
    tuning.examples = len(np.unique(groups))
    rungs = Rungs(recipe, space, tuning, files, groups, Budget(tuning.full_seconds, limit), listener)
    with _none_left(folder):
        rungs.run(own_values(recipe, space, registry))
    conclude(recipe, tuning, files["test"] if test else None, listener)
    return tuning


def require_recipe(recipe: Recipe, trials: int, test: bool) -> None:
    """Refuse a recipe that lacks splits, has several seeds or weighs its sources, and a single trial (InputError)."""
    if trials < 2:
        raise InputError(f"--trials {trials}: a search compares at least two.")
    if recipe.train.seeds > 1:
        raise InputError(
            f"train.seeds is {recipe.train.seeds}, and trials have one seed. Set it to 1 here; `ftengine seeds` trains "
            "the best recipe with several."
        )
    if recipe.data.weighted:
        raise InputError(
            "data.train has sources with weights, and trials would train on its rows without them. Leave the weights "
            "out, or compare recipes that have them with `ftengine report`."
        )
    if recipe.data.validation is None:
        raise InputError(
            "trials are compared on validation, and data.validation is null. Set it to a fraction or a file, for "
            "example --set data.validation=0.1."
        )
    if test and recipe.data.test is None and recipe.data.split.folds is None:
        raise InputError(
            "the best of several trials looks better on validation than it is, so it is measured on a test split in "
            "the end, and data.test is null. Set it, for example --set data.test=0.1, or tune without one: --no-test."
        )


def begin(
    recipe: Recipe, asked: dict[str, Any], minutes: float | None, listener: Listener
) -> tuple[Tuning, dict[str, Path]]:
    """Begin a search: check the recipe and its cost, and write the splits and tune.json.

    Raises:
        InputError: the recipe is wrong, the folder holds something else, or the time is too short.
    """
    folder = Path(recipe.output)
    if folder.is_dir() and any(path.name != FOLDER for path in folder.iterdir()):
        raise RunError(
            f"output {str(folder)!r} holds other files. Choose a folder of its own for the search with --output DIR."
        )
    planned = plan(recipe, listener=listener)  # all that is wrong with the recipe is found here
    assert planned.estimate is not None
    seconds = planned.estimate["train_seconds"] + planned.estimate["evaluate_seconds"]
    budget = Budget(seconds, None if minutes is None else 60 * minutes)
    budget.require(minutes)
    with _nothing_left(folder / FOLDER):
        files = divide(recipe, folder / FOLDER)
    tuning = Tuning(**asked, full_seconds=round(seconds, 3))
    tuning.write(folder)
    listener.message(budget.line(tuning.planned, planned.steps["total"]))
    return tuning, files


def independent(recipe: Recipe, files: dict[str, Path]) -> np.ndarray:
    """Return (n,) numbers of the validation examples, equal for those that are not independent."""
    experiment = Experiment.open(trial_recipe(recipe, files, Path(recipe.output)))
    groups = prepare_data(experiment).encoded["validation"].groups
    assert groups is not None  # training alone has none
    return groups


def conclude(recipe: Recipe, tuning: Tuning, test: Path | None, listener: Listener) -> None:
    """Write the best trial's recipe, evaluate it on the test split, if there is one, and write tune.json."""
    assert tuning.best is not None
    folder, best = Path(recipe.output), tuning.of(tuning.best)
    own = with_values(recipe, {**best.values, **every_rung(best)})
    own = own.model_copy(update={"output": str(folder / "best")})
    text = yaml.safe_dump(own.resolved(), sort_keys=False, allow_unicode=True)
    (folder / BEST).write_text(text, encoding="utf-8")
    tuning.best_recipe = str(folder / BEST)
    tuning.share = sum(trial.trained for trial in tuning.trials) / sum(trial.steps[-1] for trial in tuning.trials)
    if test is not None:
        listener.phase("measure the best on test")
        tuning.tested = measured(best.run, test)
    tuning.statement = statement(tuning)
    tuning.write(folder)


def measured(run: str, test: Path) -> Tested | None:
    """Evaluate a run on the test split by the verdict's metric (None: it has no metric)."""
    evaluation = RunRecords.read(run).evaluation
    metric = evaluation.headline_metric
    if metric is None:
        return None
    figures = load_run(run, trust_code=True).evaluate(test)
    declared = evaluation.metrics[metric]
    return Tested(
        metric=metric,
        label=declared.label,
        higher_is_better=declared.higher_is_better,
        validation=evaluation.tuned[metric],
        tuned=figures["tuned"][metric],
        base=figures["base"][metric],
    )


def require_same(folder: Path, begun: Tuning, asked: dict[str, Any]) -> None:
    """Refuse to go on with a search of another recipe, space, sampler or number of trials (RunError)."""
    before, now = _flat(begun.recipe), _flat(asked["recipe"])
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key != "output")
    names = {"space": "the ranges", "sampler": "--sampler", "planned": "--trials"}
    differing += [name for key, name in names.items() if asked[key] != getattr(begun, key)]
    if differing:
        raise RunError(
            f"output {str(folder)!r} holds another search ({FILE}), which differs in {listed(differing)}. Use the same "
            "settings, or choose another folder with --output DIR."
        )


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        return {prefix.rstrip("."): content}
    return {k: v for key, value in content.items() for k, v in _flat(value, f"{prefix}{key}.").items()}


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Remove a folder, and those above it that were made for it, where something is refused."""
    new = next((path for path in reversed((folder, *folder.parents)) if not path.exists()), folder)
    try:
        yield
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


@contextmanager
def _none_left(folder: Path) -> Iterator[None]:
    """Remove what a search wrote if its task has no losses of single examples."""
    try:
        yield
    except NoLosses:
        for name in ("trials", "losses", FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / FILE).unlink(missing_ok=True)
        raise
